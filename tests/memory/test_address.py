"""Guest addresses: sums that never wrap in silence, and rounding up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm.errors import AddressOverflow
from vqshm.memory import MAX_ADDRESS, align_up, checked_add


@given(st.integers(0, MAX_ADDRESS), st.integers(-MAX_ADDRESS, MAX_ADDRESS))
def test_a_sum_is_exact_or_refused(address, offset):
    if 0 <= address + offset <= MAX_ADDRESS:
        assert checked_add(address, offset) == address + offset
    else:
        with pytest.raises(AddressOverflow) as caught:
            checked_add(address, offset)
        assert caught.value.facts == {"address": address, "offset": offset}


def test_the_last_address_can_be_reached_and_not_passed():
    assert checked_add(MAX_ADDRESS, 0) == 0xFFFF_FFFF_FFFF_FFFF
    assert checked_add(0, MAX_ADDRESS) == MAX_ADDRESS
    with pytest.raises(AddressOverflow, match="passes 2\\^64-1"):
        checked_add(MAX_ADDRESS, 1)


@given(st.integers(0, MAX_ADDRESS), st.sampled_from([1 << shift for shift in range(13)]))
def test_align_up_gives_the_first_multiple_at_or_behind(address, alignment):
    aligned = align_up(address, alignment)
    assert aligned % alignment == 0
    assert address <= aligned < address + alignment
