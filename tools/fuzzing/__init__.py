"""Targets of fuzzing: each takes bytes from anywhere, does with vqshm what they say, and returns what was to be seen.

A target is a function from bytes to lines. It lets only errors out that nobody promised: an assertion that does not
hold, or an error without a name of vqshm's. The same bytes give the same lines on either core, which is what
tools/differential.py lives from; tools/fuzz.py searches for bytes that reach new code, and tests/fuzz replays those
that are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fuzzing import lanes, parsers, rings

if TYPE_CHECKING:
    from collections.abc import Callable

TARGETS: Final[dict[str, Callable[[bytes], list[str]]]] = {
    "device": rings.device,
    "driver": rings.driver,
    "chain": rings.chain,
    "inlet": lanes.inlet,
    "outlet": lanes.outlet,
    "control": parsers.control,
    "manifest": parsers.manifest,
    "payload": parsers.payload,
    "saved": parsers.saved,
}
