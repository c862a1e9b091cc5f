"""Messages: what coordinator and endpoints may say to each other, as a table; and how a message becomes a frame.

    frame    body length u32, version u16, number of file descriptors u16, body          little-endian, at most 64 KiB
    body     a msgpack map: "type" names the message, the other keys are its fields

Rules
- What is not in the table does not exist: an unknown message or field, a missing field, a value of another type or
  outside its limits is a ProtocolError. So is a message of our own, before it is sent.
- Limits come before allocation: msgpack is told them, and refuses a length before it makes room for it.
- Nothing but str, bytes, int, bool, list and dict comes in: no extension types, no timestamps, no floats, no None.
- Keys are text and come once.
- A request carries a serial number and its answer repeats it: an answer that comes too late is known as such.

Who sends what: an endpoint asks, one thing at a time; the coordinator answers with `ok`, `error` or the answer named
below, and may send an `event` at any time, before an answer, too.

    endpoint      attach → attached         list, stat → listing       detach       give_up
                  open → opened (the memory of a region that has no name)
                  driver: features, status (0 resets)                  device: stopped, needs_reset, config
    coordinator   event: peer_attached, peer_gone, start (DRIVER_OK), stop (reset), needs_reset, config_changed, closing
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import msgpack

from vqshm.errors import ProtocolError

Message: TypeAlias = dict[str, Any]

MAX_FRAME: Final = 1 << 16  # bytes, header included
MAX_FDS: Final = 253  # as many as the kernel passes with one message (SCM_MAX_FD)
VERSION: Final = 1

_HEADER: Final = struct.Struct("<IHH")
_MAX_ENTRIES: Final = 64  # of one list or map
_MAX_CONTAINERS: Final = 256  # of one message
_MAX_TEXT: Final = 500  # characters
_MAX_TEXT_BYTES: Final = 4 * _MAX_TEXT
_MAX_BLOB: Final = 4096  # bytes


@dataclass(frozen=True, slots=True)
class Field:
    """What a field may hold: exactly this type, a value or length in least..most, one of `choices` if any."""

    type: type
    least: int = 0
    most: int = 0
    choices: tuple[str, ...] = ()
    optional: bool = False

    def accepts(self, value: object) -> bool:
        """Whether `value` may stand in this field."""
        if type(value) is not self.type:  # exactly: a bool is no int here
            return False
        if isinstance(value, bool):
            return True
        if isinstance(value, int):
            return self.least <= value <= self.most
        if isinstance(value, list):
            return len(value) <= self.most and all(map(_is_record, value))
        if isinstance(value, str | bytes):
            return self.least <= len(value) <= self.most and (not self.choices or value in self.choices)
        return False


def _is_record(value: object) -> bool:
    """Whether it is a small map of text to numbers, truths and short texts."""
    return (
        type(value) is dict
        and len(value) <= _MAX_ENTRIES
        and all(type(key) is str for key in value)
        and all(any(field.accepts(item) for field in _SCALARS) for item in value.values())
    )


def _one_of(*choices: str) -> Field:
    return Field(str, 1, max(map(len, choices)), choices)


def _maybe(field: Field) -> Field:
    return replace(field, optional=True)


_U8: Final = Field(int, 0, 0xFF)
_U32: Final = Field(int, 0, 0xFFFF_FFFF)
_U64: Final = Field(int, 0, 0xFFFF_FFFF_FFFF_FFFF)
_PID: Final = Field(int, 0, 1 << 22)  # the kernel's limit; 0 is nobody
_NAME: Final = Field(str, 1, 31)
_TEXT: Final = Field(str, 0, _MAX_TEXT)
_FLAG: Final = Field(bool)
_SCALARS: Final = (_U64, _TEXT, _FLAG)
_BLOB: Final = Field(bytes, 0, _MAX_BLOB)
_RECORDS: Final = Field(list, 0, _MAX_ENTRIES)
_ROLE: Final = _one_of("driver", "device")
_NOTIFY: Final = _one_of("eventfd", "semaphore")
_WHAT: Final = _one_of("peer_attached", "peer_gone", "start", "stop", "needs_reset", "config_changed", "closing")

MESSAGES: Final[dict[str, dict[str, Field]]] = {
    "attach": {
        "role": _ROLE,
        "device": _NAME,
        "pid": _PID,
        "start_time": _U64,
        "features": _maybe(_U64),  # a device must say what it offers
        "config": _maybe(_BLOB),
    },
    "attached": {
        "index": _U32,
        "region": _NAME,
        "notify": _NOTIFY,
        "status": _U8,
        "features": _U64,  # offered by the device; 0 while there is none
        "peer_pid": _PID,
        "peer_start_time": _U64,
    },
    "open": {"writable": _FLAG},
    "opened": {},
    "detach": {},
    "features": {"bits": _U64},
    "status": {"value": _U8},
    "stopped": {},
    "needs_reset": {"reason": _TEXT, "queue": _maybe(_U32)},
    "config": {"offset": _U32, "data": _BLOB},
    "give_up": {"device": _NAME, "reason": _TEXT},
    "list": {},
    "stat": {},
    "listing": {"region": _NAME, "pid": _PID, "start_time": _U64, "devices": _RECORDS},
    "ok": {"value": _maybe(_U64)},
    "error": {"kind": _NAME, "message": _TEXT},
    "event": {
        "what": _WHAT,
        "role": _maybe(_ROLE),
        "pid": _maybe(_PID),
        "start_time": _maybe(_U64),
        "features": _maybe(_U64),
        "status": _maybe(_U8),
        "queue": _maybe(_U32),
        "reason": _maybe(_TEXT),
        "resume": _maybe(_FLAG),  # the session goes on, from one device to its successor
    },
}
_ENVELOPE: Final = {"serial": _maybe(_U32)}  # of a request, repeated in its answer; in any message
CARRY_FDS: Final = frozenset({"attached", "opened"})  # no other message may bring file descriptors


def validate(message: object) -> str:
    """Return the message's type. Raises ProtocolError unless the table allows every part of it."""
    if type(message) is not dict:
        raise ProtocolError(f"a message is a map, not {type(message).__name__}")
    name = message.get("type")
    fields = MESSAGES.get(name) if isinstance(name, str) else None
    if fields is None:
        raise ProtocolError(f"there is no message {_short(name)}")
    for key, value in message.items():
        field = _ENVELOPE.get(key) or fields.get(key)
        if key != "type" and (field is None or not field.accepts(value)):
            raise ProtocolError(f"message {name}: {_short(key)} must not be {_short(value)}", type=name)
    missing = [key for key, field in fields.items() if key not in message and not field.optional]
    if name == "attach" and message.get("role") == "device" and "features" not in message:
        missing.append("features")
    if missing:
        raise ProtocolError(f"message {name} lacks {', '.join(missing)}", type=name)
    return str(name)


def encode(message: Message, fd_count: int = 0) -> bytes:
    """Return the frame. Raises ProtocolError for a message that the other side would refuse."""
    name = validate(message)
    _check_fds(name, fd_count)
    try:
        body: bytes = msgpack.packb(message)
    except (ValueError, OverflowError) as error:
        raise ProtocolError(f"message {name} cannot be written: {error}", type=name) from error
    if len(body) > MAX_FRAME - _HEADER.size:
        raise ProtocolError(f"message {name} has {len(body)} bytes, more than fit into {MAX_FRAME}", type=name)
    return _HEADER.pack(len(body), VERSION, fd_count) + body


def decode(frame: bytes, fd_count: int = 0) -> Message:
    """Return the message of a frame that came with `fd_count` file descriptors. Raises ProtocolError."""
    if not _HEADER.size <= len(frame) <= MAX_FRAME:
        raise ProtocolError(f"a frame has {_HEADER.size} to {MAX_FRAME} bytes, not {len(frame)}")
    length, version, declared = _HEADER.unpack_from(frame)
    if version != VERSION:
        raise ProtocolError(f"the peer speaks version {version} of the protocol, not {VERSION}", version=version)
    if length != len(frame) - _HEADER.size:
        raise ProtocolError(f"the frame announces {length} bytes and holds {len(frame) - _HEADER.size}")
    if declared != fd_count:
        raise ProtocolError(f"the frame announces {declared} file descriptors and brings {fd_count}")
    message: Message = _unpack(memoryview(frame)[_HEADER.size :])
    _check_fds(validate(message), fd_count)
    return message


def clip(text: str) -> str:
    """Return `text` as it fits into a text field: its first 500 characters, what cannot be encoded replaced."""
    return text[:_MAX_TEXT].encode("utf-8", "replace").decode("utf-8")


def _check_fds(name: str, count: int) -> None:
    if count > (MAX_FDS if name in CARRY_FDS else 0):
        raise ProtocolError(f"message {name} must not carry {count} file descriptors", type=name)


def _unpack(body: memoryview) -> Any:
    """What a peer wrote, within the limits; `validate` looks at it next."""
    containers = 0

    def count() -> None:
        nonlocal containers
        containers += 1
        if containers > _MAX_CONTAINERS:
            raise ProtocolError(f"a message has at most {_MAX_CONTAINERS} lists and maps")

    def on_list(items: list[Any]) -> list[Any]:
        count()
        return items

    def on_map(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        count()
        result = dict(pairs)
        if len(result) != len(pairs) or not all(type(key) is str for key in result):
            raise ProtocolError("the keys of a map are text and come once")
        return result

    def on_extension(code: int, _data: bytes) -> None:
        raise ProtocolError(f"no extension types, not even {code}")

    try:
        return msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            list_hook=on_list,
            object_pairs_hook=on_map,
            ext_hook=on_extension,
            max_str_len=_MAX_TEXT_BYTES,
            max_bin_len=_MAX_BLOB,
            max_array_len=_MAX_ENTRIES,
            max_map_len=_MAX_ENTRIES,
            max_ext_len=0,
        )
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError(f"no msgpack within the limits: {error or type(error).__name__}") from error


def _short(value: object) -> str:
    # A list's repr would recurse as deep as a peer nested it.
    text = repr(value) if isinstance(value, str | bytes | int) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
