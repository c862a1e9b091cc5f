"""Command line: `vqshm …`, for people and their scripts.

    app           the group of commands, each loaded when it is used; what errors look like
    coordinator   makes a region and serves it         stat   looks into a running one
    regions       `ls` and `clean`                     doctor what this machine offers
    console       sizes, numbers, and what all of them print through

Exit codes: 0 done, 1 an error (one line on stderr), 2 a command that was not understood, 130 Ctrl-C.

This module imports neither click nor rich: without them it says how to get them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

NEEDED = ("click", "rich")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command (None: the one this process was started with) and return its exit code."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(f"error: the command line needs {' and '.join(missing)}: pip install 'vqshm[cli]'\n")
        return 1
    try:
        from vqshm.cli.app import commands  # noqa: PLC0415 - see above

        commands.main(arguments, "vqshm")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except KeyboardInterrupt:
        return 130
    return 0
