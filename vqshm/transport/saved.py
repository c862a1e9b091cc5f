"""Saved queue states as bytes: the msgpack form of `QueueState`, for a file or another process.

What comes back is untrusted. A map of the nine fields by name, behind a version, so that a later version can tell an
earlier one:

    {"vqshm": 1, "queue": {"max_size": …, "next_avail": …, …}}
"""

from __future__ import annotations

from typing import Final

import msgpack

from vqshm.errors import VersionMismatch
from vqshm.ring.state import QueueState

VERSION: Final = 1
_MAX_BYTES: Final = 512


def pack_state(state: QueueState) -> bytes:
    """The bytes of a state."""
    return bytes(msgpack.packb({"vqshm": VERSION, "queue": state.as_map()}))


def unpack_state(data: bytes) -> QueueState:
    """The state in `data`. `Queue.from_state` judges whether it makes a queue.

    Raises ValueError for anything that `pack_state` cannot have written, VersionMismatch (a ValueError) for another
    version.
    """
    if len(data) > _MAX_BYTES:
        raise ValueError(f"a saved queue state has at most {_MAX_BYTES} bytes, not {len(data)}")
    try:
        saved = msgpack.unpackb(data, raw=False, strict_map_key=True, max_ext_len=0, max_array_len=0, max_map_len=16)
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException) as error:
        raise ValueError(f"not a saved queue state: {error or type(error).__name__}") from error
    if not isinstance(saved, dict) or set(saved) != {"vqshm", "queue"}:
        raise ValueError("not a saved queue state")
    if saved["vqshm"] != VERSION:
        raise VersionMismatch(f"the queue state was saved in version {saved['vqshm']!r}, this library reads {VERSION}")
    return QueueState.from_map(saved["queue"])
