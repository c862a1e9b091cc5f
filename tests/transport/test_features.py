"""A feature is accepted only if it is offered, understood, and has what it requires; VERSION_1 always is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm import spec
from vqshm.errors import NegotiationError
from vqshm.transport.features import DEVICE_BITS, SUPPORTED, VERSION_1, check_accepted, check_offer, names, negotiate

INDIRECT, EVENT_IDX = spec.mask(spec.VIRTIO_F_INDIRECT_DESC), spec.mask(spec.VIRTIO_F_EVENT_IDX)
PACKED = spec.mask(spec.VIRTIO_F_RING_PACKED)
# Bit 3 needs 1 and 2, and 2 needs 0.
REQUIRES = {3: (1, 2), 2: (0,)}

offers = st.integers(0, 2**64 - 1) | st.integers(0, 31).map(VERSION_1.__or__)


def test_supported_are_indirect_desc_event_idx_and_version_1():
    assert names(SUPPORTED) == ("VIRTIO_F_INDIRECT_DESC", "VIRTIO_F_EVENT_IDX", "VIRTIO_F_VERSION_1")


def test_bits_without_a_name_are_named_by_whom_they_belong_to():
    assert names(spec.mask(0, 34, 45)) == ("device bit 0", "VIRTIO_F_RING_PACKED", "reserved bit 45")
    assert names(spec.mask(127)) == ("device bit 127",)
    assert names(0) == ()


def test_an_offer_needs_version_1():
    check_offer(VERSION_1)
    check_offer(SUPPORTED | DEVICE_BITS)
    with pytest.raises(NegotiationError, match="VERSION_1"):
        check_offer(INDIRECT)


@pytest.mark.parametrize("bit", [24, 27, 30, 31, 33, 34, 35, 36, 38, 40, 41, 43, 44, 49, 64, 127, 128])
def test_a_bit_that_does_not_work_here_is_neither_offered_nor_accepted(bit):
    bits = VERSION_1 | spec.mask(bit)
    with pytest.raises(NegotiationError, match=names(spec.mask(bit))[0]):
        check_offer(bits)
    with pytest.raises(NegotiationError, match=names(spec.mask(bit))[0]):
        check_accepted(bits, bits)
    assert negotiate(bits, bits) == VERSION_1


def test_negative_bits_are_refused():
    with pytest.raises(NegotiationError):
        check_offer(-1)
    with pytest.raises(NegotiationError):
        check_accepted(SUPPORTED, -1)


def test_a_driver_accepts_what_it_wants_of_what_is_offered():
    assert negotiate(VERSION_1 | INDIRECT | EVENT_IDX, INDIRECT | PACKED) == VERSION_1 | INDIRECT
    assert negotiate(VERSION_1 | INDIRECT, EVENT_IDX) == VERSION_1


def test_a_driver_does_not_fail_because_of_features_it_does_not_know():
    assert negotiate(2**64 - 1, 0) == VERSION_1


def test_a_driver_gives_up_without_version_1():
    with pytest.raises(NegotiationError, match="VERSION_1"):
        negotiate(INDIRECT, INDIRECT)


def test_a_driver_gives_up_without_a_required_feature_and_names_it():
    with pytest.raises(NegotiationError, match="VIRTIO_F_EVENT_IDX"):
        negotiate(VERSION_1 | INDIRECT, 0, required=EVENT_IDX)
    assert negotiate(VERSION_1 | EVENT_IDX, 0, required=EVENT_IDX) == VERSION_1 | EVENT_IDX


def test_a_feature_goes_nowhere_without_what_it_requires():
    all_four = VERSION_1 | 0b1111
    assert negotiate(all_four, all_four, requires=REQUIRES) == all_four
    without_0 = all_four & ~0b0001
    assert negotiate(without_0, all_four, requires=REQUIRES) == VERSION_1 | 0b0010
    with pytest.raises(NegotiationError, match="device bit 3"):
        negotiate(without_0, all_four, required=0b1000, requires=REQUIRES)
    with pytest.raises(NegotiationError, match="device bit 2 is offered without device bit 0"):
        check_offer(without_0, REQUIRES)
    with pytest.raises(NegotiationError, match="device bit 3 is accepted without device bit 2"):
        check_accepted(all_four, VERSION_1 | 0b1010, REQUIRES)


def test_what_was_not_offered_is_not_accepted():
    with pytest.raises(NegotiationError, match="VIRTIO_F_EVENT_IDX was accepted but not offered"):
        check_accepted(VERSION_1 | INDIRECT, VERSION_1 | EVENT_IDX)


def test_version_1_is_accepted():
    with pytest.raises(NegotiationError, match="VERSION_1"):
        check_accepted(VERSION_1 | INDIRECT, INDIRECT)


@given(offered=offers, wanted=offers, required=offers)
def test_what_a_driver_negotiates_a_device_accepts(offered, wanted, required):
    try:
        accepted = negotiate(offered, wanted, required, REQUIRES)
    except NegotiationError:
        if offered & VERSION_1:
            assert required & ~negotiate(offered, wanted | required, 0, REQUIRES)
        return
    assert not accepted & ~offered
    assert not required & ~accepted
    check_accepted(offered, accepted, REQUIRES)
    check_offer(accepted, REQUIRES)
