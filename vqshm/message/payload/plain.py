"""Plain: objects as msgpack, and back.

Tuples come back as lists, except as keys of a dict; a subclass comes back as what it was derived from. Sets, numbers
beyond 64 bits and objects of your own are no msgpack.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from vqshm.errors import ProtocolError

_SMALL: Final = 4096  # bytes: what so short a message claims to be is no danger to the memory
_KEPT: Final = 1 << 20  # bytes: a packer that has grown by a longer message is not kept
_FAILURES: Final = (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException)
_packers: list[Any] = []  # to make one costs as much as a small message; each is used by one thread at a time


def pack(obj: Any) -> bytes:
    """An object as msgpack. Raises TypeError, ValueError, OverflowError for what is none."""
    try:
        packer = _packers.pop()
    except IndexError:
        packer = msgpack.Packer()
    data: bytes = packer.pack(obj)
    if len(data) < _KEPT:
        _packers.append(packer)
    return data


def unpack(data: bytes) -> Any:
    """The object that was packed. `data` is nobody else's, so that it stays as it was checked. Raises ProtocolError."""
    try:
        if len(data) > _SMALL:
            _skim(data)
        return msgpack.unpackb(data, strict_map_key=False)
    except _FAILURES as error:
        if isinstance(error, TypeError) and "unhashable" in str(error):
            return _unpack_with_tuples(data)
        raise _malformed(data, error) from error


def _skim(data: bytes) -> None:
    """Go through all of it without making anything of it.

    A list makes room for as many items as it claims to have before the first is read. Lists in lists of a million
    items each would take gigabytes, and be found incomplete only then.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=len(data))
    unpacker.feed(data)
    unpacker.skip()


def _unpack_with_tuples(data: bytes) -> Any:
    """As `unpack`, for dicts whose keys are lists now, and were tuples."""
    try:
        return msgpack.unpackb(data, strict_map_key=False, object_pairs_hook=_dict)
    except _FAILURES as error:
        raise _malformed(data, error) from error


def _dict(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    return {_as_key(key): value for key, value in pairs}


def _as_key(key: Any) -> Any:
    return tuple(map(_as_key, key)) if isinstance(key, list) else key


def _malformed(data: bytes, error: Exception) -> ProtocolError:
    return ProtocolError(f"a message of {len(data)} bytes is no msgpack: {str(error) or type(error).__name__}")
