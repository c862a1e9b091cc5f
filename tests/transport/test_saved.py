"""Saved queue states: what was packed comes back, and nothing else does."""

import contextlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm.errors import VersionMismatch
from vqshm.ring import Queue, QueueState
from vqshm.transport.saved import pack_state, unpack_state


def a_state() -> QueueState:
    queue = Queue(256)
    queue.set_size(64)
    queue.set_desc_table_address(0x1000, 0x1)
    queue.set_next_avail(65535)
    queue.set_event_idx(True)
    return queue.state()


def test_a_packed_state_comes_back_and_makes_the_same_queue():
    state = unpack_state(pack_state(a_state()))
    assert state == a_state()
    assert Queue.from_state(state).state() == state


def test_another_version_is_named():
    data = msgpack.packb({"vqshm": 2, "queue": a_state().as_map()})
    with pytest.raises(VersionMismatch, match="version 2"):
        unpack_state(data)


@given(st.binary(max_size=600))
def test_any_bytes_give_a_state_or_a_value_error(data):
    with contextlib.suppress(ValueError):
        assert isinstance(unpack_state(data), QueueState)


@given(
    st.sampled_from(sorted(a_state().as_map())),
    st.one_of(st.integers(-(2**63), 2**64 - 1), st.text(max_size=5), st.none(), st.floats(), st.booleans()),
)
def test_a_field_out_of_range_or_of_another_type_is_refused(name, value):
    values = {**a_state().as_map(), name: value}
    data = msgpack.packb({"vqshm": 1, "queue": values})
    wants_bool = name in {"event_idx_enabled", "ready"}
    limit = 16 if name in {"max_size", "size", "next_avail", "next_used"} else 64
    fits = isinstance(value, bool) if wants_bool else type(value) is int and 0 <= value < 1 << limit
    if fits:
        assert unpack_state(data).as_map() == values
    else:
        with pytest.raises(ValueError, match=name):
            unpack_state(data)


def test_a_huge_blob_is_refused_before_it_is_parsed():
    with pytest.raises(ValueError, match="at most"):
        unpack_state(b"\x81" * 10_000)
