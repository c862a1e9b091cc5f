"""Payload: an object as one message, and back.

    dict, list, str, int, float, bool, None, …     msgpack, as it is                     plain
    bytes-like                                     behind a header                       frame
    numpy arrays                                   dtype, shape, items in C order        arrays    vqshm[numpy]
    pyarrow's Table and RecordBatch                an Arrow stream                       tables    vqshm[arrow]

No pickle: nothing that comes is ever executed. What comes back is what was sent, but: a tuple is a list, anything
bytes-like is `bytes`, a numpy scalar is an array of no dimensions.

Encoding fails before anything is sent, with TypeError, ValueError or OverflowError. What large objects consist of is
written once, where the receiver reads it. Decoding believes nothing: what does not add up is a ProtocolError.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeAlias

from vqshm.errors import ProtocolError
from vqshm.message.payload import arrays, frame, plain, tables
from vqshm.message.payload.frame import MARK, Body

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MARK", "Body", "Message", "decode", "decode_in_place", "encode"]

Message: TypeAlias = bytes | tuple[bytes, Any] | Body  # what `send` takes, or what is written into what `reserve` gives


def encode(obj: Any) -> Message:
    """The message of an object: for `send`, or a `Body` for `reserve`. Raises TypeError, ValueError, OverflowError."""
    return (_BY_TYPE.get(type(obj)) or _way_of(obj))(obj)


def decode(message: bytes | memoryview) -> Any:
    """The object of a message, which is the caller's own: nothing of `message` is referred to. Raises ProtocolError."""
    if not message:
        raise ProtocolError("an empty message: no object is that small")
    if message[0] != MARK:
        # A sender can change what is in shared memory while it is read.
        return plain.unpack(message if type(message) is bytes else bytes(message))
    with memoryview(message) as view:
        kind, start, description = frame.parse(view)
        if kind == frame.ARRAY:
            return arrays.decode(description, len(view) - start)(view[start:]).copy()
        body = view[start:].tobytes()
    return body if kind == frame.BYTES else tables.decode(kind, body)


def decode_in_place(view: memoryview) -> Any:
    """The object of a message, over its memory where that makes sense: bytes (a memoryview), arrays, tables.

    Raises ProtocolError.
    """
    if not view or view[0] != MARK:
        return decode(view)
    kind, start, description = frame.parse(view)
    if kind == frame.ARRAY:
        return arrays.decode(description, len(view) - start)(view[start:])
    return view[start:] if kind == frame.BYTES else tables.decode(kind, view[start:])


def _encode_bytes(data: Any) -> tuple[bytes, Any]:
    if type(data) is not bytes:
        data = _flat(memoryview(data))
    return frame.header(frame.BYTES, len(data)), data


def _flat(view: memoryview) -> memoryview | bytes:
    """The bytes of a buffer."""
    if not view.c_contiguous:
        raise ValueError("the bytes must lie in one contiguous piece: this buffer does not")
    if not view.nbytes:
        return b""
    try:
        return view.cast("B")
    except (TypeError, ValueError):  # of a format that memoryview does not know: a structure of ctypes
        return view.tobytes()


def _encode_plain(obj: Any) -> bytes:
    try:
        return plain.pack(obj)
    except TypeError as error:
        raise TypeError(
            f"no message can be made of this {type(obj).__name__}: {error}; what can: bytes-like objects, numpy "
            "arrays, Arrow tables, and what msgpack knows: dict, list, str, int, float, bool, None"
        ) from error


_BY_TYPE: dict[type, Callable[[Any], Message]] = {
    **dict.fromkeys((dict, list, tuple, str, int, float, bool, type(None)), _encode_plain),
    **dict.fromkeys((bytes, bytearray, memoryview), _encode_bytes),
}


def _way_of(obj: Any) -> Callable[[Any], Message]:
    """How to encode an object of another type."""
    numpy, pyarrow = sys.modules.get("numpy"), sys.modules.get("pyarrow")
    if numpy is not None and isinstance(obj, numpy.ndarray | numpy.generic):
        return arrays.encode
    if pyarrow is not None and isinstance(obj, pyarrow.Table | pyarrow.RecordBatch):
        return tables.encode
    try:
        memoryview(obj).release()
    except TypeError:
        return _encode_plain
    return _encode_bytes
