"""Runnable device and driver programs on the public API of vqshm, each short enough to read in one go.

    python -m workers.echo_device         python -m workers.echo_driver [TEXT]
    python -m workers.checksum_device     python -m workers.checksum_driver FILE …
    python -m workers.zblock_device       python -m workers.zblock_driver FILE
    python -m workers.blk_device IMAGE    python -m workers.blk_driver

Each attaches to a region that a coordinator has made (`--region`, `--device`), and each file runs by itself, too. They
end with 0, with 130 after Ctrl-C, and with 1 and one line on stderr if something is wrong.
"""

import sys
from pathlib import Path

# `python -m` puts the working directory first. In a checkout, its uncompiled `vqshm` would hide the installed one.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent.parent:
    sys.path.append(sys.path.pop(0))
