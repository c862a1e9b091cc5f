"""Saved state is plain and untrusted: exactly its fields, of their types, in their ranges."""

from __future__ import annotations

import dataclasses

import pytest

from vqshm.ring import QueueState

GOOD = {
    "max_size": 256,
    "next_avail": 65535,
    "next_used": 1,
    "event_idx_enabled": True,
    "size": 128,
    "ready": False,
    "desc_table": 2**64 - 1,
    "avail_ring": 2,
    "used_ring": 4,
}
BITS = {
    **dict.fromkeys(("max_size", "next_avail", "next_used", "size"), 16),
    **dict.fromkeys(("desc_table", "avail_ring", "used_ring"), 64),
}


def test_the_map_of_a_state_makes_the_state_again():
    state = QueueState.from_map(GOOD)
    assert state.as_map() == GOOD
    assert list(state.as_map()) == list(GOOD)


def test_a_state_cannot_be_changed():
    state = QueueState.from_map(GOOD)
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.size = 4


@pytest.mark.parametrize("field", GOOD)
def test_a_missing_field_is_refused(field):
    with pytest.raises(ValueError, match="exactly the fields"):
        QueueState.from_map({name: value for name, value in GOOD.items() if name != field})


@pytest.mark.parametrize("extra", ["more", "", 0, None, ("size",)])
def test_an_unknown_field_is_refused(extra):
    with pytest.raises(ValueError, match="exactly the fields"):
        QueueState.from_map({**GOOD, extra: 1})


@pytest.mark.parametrize("field", BITS)
def test_a_number_holds_its_bits_and_no_more(field):
    most = (1 << BITS[field]) - 1
    assert getattr(QueueState.from_map({**GOOD, field: most}), field) == most
    for value in (most + 1, -1, 2**70, -(2**70)):
        with pytest.raises(ValueError, match=f"{field} {value} is out of range"):
            QueueState.from_map({**GOOD, field: value})
    for wrong in (None, "1", 1.0, b"1", True, [1]):
        with pytest.raises(ValueError, match="whole number"):
            QueueState.from_map({**GOOD, field: wrong})


@pytest.mark.parametrize("field", ["event_idx_enabled", "ready"])
@pytest.mark.parametrize("wrong", [0, 1, None, "true", 1.0])
def test_a_truth_is_true_or_false(field, wrong):
    with pytest.raises(ValueError, match="true or false"):
        QueueState.from_map({**GOOD, field: wrong})


@pytest.mark.parametrize("wrong", [None, 7, "state", [("size", 1)], list(GOOD.items()), b"", object()])
def test_what_is_no_map_is_refused(wrong):
    with pytest.raises(ValueError, match="exactly the fields"):
        QueueState.from_map(wrong)
