"""What is not in the table of messages does not come in, and is refused before memory is spent on it."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm.errors import ProtocolError
from vqshm.transport.messages import CARRY_FDS, MAX_FDS, MAX_FRAME, MESSAGES, Field, clip, decode, encode, validate

ATTACH = {"type": "attach", "role": "driver", "device": "echo", "pid": 4711, "start_time": 12345}


LETTERS = st.characters(codec="utf-8")


def frame(body: bytes, version: int = 1, fds: int = 0, length: int | None = None) -> bytes:
    return struct.pack("<IHH", len(body) if length is None else length, version, fds) + body


def values(field: Field) -> st.SearchStrategy:
    """Everything that a field may hold."""
    if field.choices:
        return st.sampled_from(field.choices)
    if field.type is bool:
        return st.booleans()
    if field.type is int:
        return st.integers(field.least, field.most)
    if field.type is str:
        return st.text(LETTERS, min_size=field.least, max_size=field.most)
    if field.type is bytes:
        return st.binary(min_size=field.least, max_size=field.most)
    scalars = st.integers(0, 2**64 - 1) | st.text(LETTERS, max_size=20) | st.booleans()
    return st.lists(st.dictionaries(st.text(LETTERS, max_size=20), scalars, max_size=5), max_size=5)


@st.composite
def messages(draw):
    name = draw(st.sampled_from(sorted(MESSAGES)))
    fields = MESSAGES[name]
    required = {key: values(field) for key, field in fields.items() if not field.optional}
    optional = {key: values(field) for key, field in fields.items() if field.optional}
    if name == "attach":
        required["features"] = optional.pop("features")
    return {"type": name, **draw(st.fixed_dictionaries(required, optional=optional))}


# -- what may be said --------------------------------------------------------------------------------------------------


@given(messages())
def test_every_message_of_the_table_comes_back_as_it_was_sent(message):
    assert validate(message) == message["type"]
    assert decode(encode(message)) == message


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_the_largest_message_of_each_type_fits_into_a_frame(name):
    def largest(field: Field) -> object:
        if field.choices:
            return max(field.choices, key=len)
        if field.type is bool:
            return True
        if field.type is int:
            return field.most
        if field.type is list:
            return [{"name": "x" * 31, "number": 2**64 - 1, "pid": 2**64 - 1, "flag": True}] * field.most
        return ("ß" if field.type is str else b"x") * field.most

    message = {"type": name, **{key: largest(field) for key, field in MESSAGES[name].items()}}
    assert decode(encode(message)) == message


def test_text_of_any_kind_is_clipped_to_what_fits():
    message = {"type": "error", "kind": "QueueFull", "message": clip("😀\udcff" * 1000)}
    assert decode(encode(message)) == message
    assert len(message["message"]) == 500


def test_a_device_that_attaches_says_what_it_offers():
    validate(ATTACH)
    with pytest.raises(ProtocolError, match="features"):
        validate({**ATTACH, "role": "device"})
    validate({**ATTACH, "role": "device", "features": 0})


# -- what may not ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        "attach",
        {},
        {"type": None},
        {"type": 1},
        {"type": []},
        {"type": "no such message"},
        {"type": "ATTACH"},
        {**ATTACH, "more": 1},
        {key: value for key, value in ATTACH.items() if key != "pid"},
        {key: value for key, value in ATTACH.items() if key != "role"},
        {**ATTACH, "pid": "4711"},
        {**ATTACH, "pid": True},
        {**ATTACH, "pid": 4711.0},
        {**ATTACH, "pid": -1},
        {**ATTACH, "pid": (1 << 22) + 1},
        {**ATTACH, "start_time": 1 << 64},
        {**ATTACH, "role": "coordinator"},
        {**ATTACH, "device": ""},
        {**ATTACH, "device": "x" * 32},
        {**ATTACH, "device": b"echo"},
        {**ATTACH, "config": "text"},
        {**ATTACH, "config": bytes(4097)},
        {"type": "status", "value": 256},
        {"type": "event", "what": "nothing"},
        {"type": "listing", "region": "r", "pid": 1, "start_time": 1, "devices": {}},
        {"type": "listing", "region": "r", "pid": 1, "start_time": 1, "devices": [1]},
        {"type": "listing", "region": "r", "pid": 1, "start_time": 1, "devices": [{}] * 65},
        {"type": "listing", "region": "r", "pid": 1, "start_time": 1, "devices": [{"a": {}}]},
        {"type": "listing", "region": "r", "pid": 1, "start_time": 1, "devices": [{"a": None}]},
        {"type": "listing", "region": "r", "pid": 1, "start_time": 1, "devices": [{"a": 1.5}]},
        {"type": "listing", "region": "r", "pid": 1, "start_time": 1, "devices": [{"a": -1}]},
        {"type": "listing", "region": "r", "pid": 1, "start_time": 1, "devices": [{1: 1}]},
    ],
)
def test_what_is_not_in_the_table_is_refused_on_both_ways(message):
    with pytest.raises(ProtocolError):
        validate(message)
    with pytest.raises(ProtocolError):
        encode(message)
    try:
        body = msgpack.packb(message)
    except (OverflowError, TypeError):
        return
    with pytest.raises(ProtocolError):
        decode(frame(body))


def test_text_that_has_no_encoding_is_not_sent():
    with pytest.raises(ProtocolError):
        encode({**ATTACH, "device": "\udcff"})


def test_a_message_that_is_too_long_is_not_sent():
    devices = [{"text": "x" * 500, "more": "x" * 500, "most": "x" * 100}] * 64
    with pytest.raises(ProtocolError, match="65536"):
        encode({"type": "listing", "region": "r", "pid": 1, "start_time": 1, "devices": devices})


def test_only_some_messages_carry_descriptors():
    attached = {"type": "attached", "index": 0, "region": "r", "notify": "eventfd", "status": 0, "features": 0}
    attached |= {"peer_pid": 0, "peer_start_time": 0}
    assert frozenset({"attached", "opened"}) == CARRY_FDS
    decode(encode(attached, MAX_FDS), MAX_FDS)
    with pytest.raises(ProtocolError):
        encode(attached, MAX_FDS + 1)
    with pytest.raises(ProtocolError):
        encode(ATTACH, 1)
    with pytest.raises(ProtocolError):
        decode(frame(msgpack.packb(ATTACH), fds=1), 1)


# -- frames ------------------------------------------------------------------------------------------------------------

GOOD = msgpack.packb({"type": "detach"})


@pytest.mark.fault("F09")
@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\0",
        frame(GOOD)[:7],
        frame(GOOD)[:-1],
        frame(GOOD) + b"\0",
        frame(GOOD, length=0),
        frame(GOOD, length=2**31),
        frame(GOOD, length=2**32 - 1),
        frame(b""),
        frame(GOOD, version=0),
        frame(GOOD, version=2),
        frame(GOOD, fds=1),
        frame(GOOD, fds=2**16 - 1),
        frame(GOOD * 2),
        frame(bytes(MAX_FRAME)),
    ],
)
def test_a_frame_that_does_not_say_what_it_is_is_refused(bad):
    with pytest.raises(ProtocolError):
        decode(bad)


def test_descriptors_that_were_not_announced_are_refused():
    with pytest.raises(ProtocolError, match="announces 0 file descriptors and brings 1"):
        decode(frame(GOOD), 1)


NAN = b"\xcb\x7f\xf8\0\0\0\0\0\0"


@pytest.mark.fault("F05", "F06", "F08")
@pytest.mark.parametrize(
    "body",
    [
        b"\xdd\xff\xff\xff\xff",  # array 32
        b"\xdf\xff\xff\xff\xff",  # map 32
        b"\xdb\xff\xff\xff\xff",  # str 32
        b"\xc6\xff\xff\xff\xff",  # bin 32
        b"\xc9\xff\xff\xff\xff\x01",  # ext 32
        b"\x81\xa4type\xdd\xff\xff\xff\xff",
        b"\x81\xa4type\xdf\xff\xff\xff\xff",
        b"\xdd\x00\x10\x00\x00" + bytes(60_000),  # a million entries, of which some are there
        b"\xdf\x00\x10\x00\x00" + bytes(60_000),
        b"\x81\xa4type\xc6\xff\xff\xff\xff",
        b"\x91" * 60_000,  # nested arrays
        b"\x81\xa1a" * 20_000,  # nested maps
        b"\x81\xa4type" + b"\x91" * 900 + b"\x90",
        b"\x91" * 1000 + b"\x90",
        b"\xdc\x00\x0f" + (b"\xdc\x00\x40" + (b"\xdc\x00\x40" + b"\x90" * 64) * 64) * 15,  # 62 400 lists
        b"\xdc\x00\x40" + (b"\xdc\x00\x40" + b"\xcd\xff\xff" * 64) * 64,  # many numbers
        b"\x81\xa4type\xd6\xff\0\0\0\0",  # timestamp 32
        b"\x81\xa4type\xc7\x0c\xff" + bytes(12),  # timestamp 96
        b"\x81\xa4type\xd4\x01x",  # fixext 1
        b"\x81\xa4type\xc7\x00\x01",  # ext 8, empty
        b"\x81\xa4type\xc7\x00\xff",  # timestamp, empty
        b"\x81" + NAN + b"\x01",  # a key that is no text
        b"\x82" + NAN + b"\x01" + NAN + b"\x02",
        b"\x81\xc4\x04type\xa6detach",
        b"\x81\x01\x01",
        b"\x81\x90\x01",  # unhashable keys
        b"\x81\x80\x01",
        b"\x81\xc0\x01",
        b"\x82\xa4type\xa6detach\xa4type\xa6detach",  # a key that comes twice
        b"\x81\xa4type\xa2\xff\xfe",  # no UTF-8
        b"\x81\xa4type\xa3\xed\xb3\xbf",  # a surrogate
        b"\x81\xa2\xff\xfe\x01",
        b"\x81\xa4type\xda\xff\xff" + b"x" * 60_000,  # a long text
        b"\x81\xa4type\xc1",  # never used
        b"\xc0",
        b"\x80",
        NAN,
    ],
)
def test_a_hostile_body_is_refused_without_spending_memory(body):
    hostile = frame(body)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError) as caught:
            decode(hostile)
        assert len(str(caught.value)) < 500
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.fault("F08")
@given(st.binary(max_size=300))
def test_any_body_is_a_message_or_a_protocol_error(body):
    with contextlib.suppress(ProtocolError):
        assert validate(decode(frame(body))) in MESSAGES


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(LETTERS) | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(LETTERS) | st.integers(0, 9), inner),
)


@given(st.dictionaries(st.sampled_from(["type", "role", "pid", "value", "devices", "data"]), anything) | anything)
def test_anything_that_can_be_written_is_a_message_or_a_protocol_error(value):
    with contextlib.suppress(ProtocolError):
        validate(value)
    with contextlib.suppress(ProtocolError):
        assert validate(decode(frame(msgpack.packb(value)))) in MESSAGES


@given(messages(), st.data())
def test_a_message_with_one_field_replaced_is_a_message_or_a_protocol_error(message, data):
    key = data.draw(st.sampled_from(sorted(message)))
    with contextlib.suppress(ProtocolError):
        validate({**message, key: data.draw(anything)})
