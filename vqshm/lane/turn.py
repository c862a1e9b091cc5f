"""Turn: whether a mark of being at work at a lane's end is somebody's who is, or was left behind by an exception.

Where an exception can strike between any two steps (the interpreted core), no `finally` is sure to take a mark away.
What an exception does take away is the call itself: so that is looked for, on the stacks of all threads. This costs
something, and is asked only where a mark was found.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

_HERE: Final = tuple(str(Path(__file__).parents[1] / folder) for folder in ("lane", "ring"))


def at_work(end: object) -> bool:
    """Whether a method of `end` is being called, besides the one that asks.

    `send_many` is not at work while it asks for the next message.
    """
    own: FrameType | None = sys._getframe()
    others = [frame for frame in sys._current_frames().values() if frame is not own]
    while own is not None and _is_here(own):
        own = own.f_back
    return any(_calls(frame, end) for frame in [own, *others])


def _calls(frame: FrameType | None, end: object) -> bool:
    while frame is not None:
        # Only of our own frames: their dictionary of locals keeps what is in it alive until the frame ends.
        if _is_here(frame) and frame.f_code.co_name != "send_many" and frame.f_locals.get("self") is end:
            return True
        frame = frame.f_back
    return False


def _is_here(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_HERE)
