"""Feature bits [2.2, 6] and the configuration space [2.5]."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm import errors, spec
from vqshm.devices.blk_client import BlkClient
from vqshm.memory import Region
from vqshm.transport import ConfigSpace
from vqshm.transport.features import check_accepted, check_offer, negotiate

VERSION_1 = spec.mask(spec.VIRTIO_F_VERSION_1)
EVENT_IDX = spec.mask(spec.VIRTIO_F_EVENT_IDX)
SR_IOV = spec.mask(spec.VIRTIO_F_SR_IOV)
BITS = st.integers(0, (1 << 64) - 1)
ANY_BITS = st.integers(0, (1 << 130) - 1)
ALL = (1 << 130) - 1

# A device type in which feature 3 requires feature 2, and feature 2 requires 0 and 1.
REQUIRES = {3: (2,), 2: (0, 1)}

# What no driver here may accept and no device may offer. Of the bits for the queues only three are supported.
NOT_HERE = [bit for bit in range(24, 41) if bit not in {28, 29, 32}] + [43]
RESERVED = [*range(44, 50), *range(128, 132)]
OTHER_TRANSPORTS = [spec.VIRTIO_F_ADMIN_VQ, spec.VIRTIO_F_SR_IOV]
FOREIGN = sorted({*NOT_HERE, *RESERVED, *OTHER_TRANSPORTS})


# -- 2.2.1 the driver --------------------------------------------------------------------------------------------------


@pytest.mark.spec("2.2.1-driver-1")
@given(offered=ANY_BITS, wanted=ANY_BITS)
def test_nothing_is_accepted_that_was_not_offered(offered, wanted):
    accepted = negotiate(offered | VERSION_1, wanted)
    assert accepted & ~(offered | VERSION_1) == 0


@pytest.mark.spec("2.2.1-driver-2")
@given(offered=st.integers(0, 15), wanted=st.integers(0, 15))
def test_nothing_is_accepted_without_what_it_requires(offered, wanted):
    accepted = negotiate(offered | VERSION_1, wanted, requires=REQUIRES)
    for bit, needed in REQUIRES.items():
        if accepted >> bit & 1:
            assert all(accepted >> other & 1 for other in needed)


@pytest.mark.spec("2.2.1-driver-3")
@pytest.mark.parametrize("offered", [0, EVENT_IDX, ALL & ~VERSION_1])
def test_an_offer_without_version_1_is_noticed(offered):
    with pytest.raises(errors.NegotiationError, match="VERSION_1"):
        negotiate(offered, ALL)


@pytest.mark.spec("2.2.1-driver-4")
@pytest.mark.parametrize("bit", FOREIGN)
def test_a_foreign_bit_in_the_offer_changes_nothing(bit):
    offered = VERSION_1 | EVENT_IDX | 1 << 5
    assert negotiate(offered | 1 << bit, ALL) == negotiate(offered, ALL) == offered


@pytest.mark.spec("2.2.1-driver-5")
@given(offered=ANY_BITS, wanted=ANY_BITS)
def test_no_foreign_bit_is_accepted_even_if_wanted(offered, wanted):
    accepted = negotiate(offered | VERSION_1, wanted)
    assert not [bit for bit in FOREIGN if accepted >> bit & 1]


@pytest.mark.spec("2.2.1-driver-5")
@pytest.mark.parametrize("bit", [0, 5, 23, 50, 63])
def test_a_bit_of_the_device_type_that_the_driver_does_not_know_is_not_accepted(bit):
    assert negotiate(VERSION_1 | 1 << bit, VERSION_1) == VERSION_1


@pytest.mark.spec("2.2.1-driver-6")
def test_a_driver_that_cannot_do_without_a_feature_sets_failed_and_stops(world):
    world.device(features=1 << 5)
    with pytest.raises(errors.NegotiationError, match="bit 6"):
        world.driver(required=1 << 6)
    *before, last = world.statuses
    assert before == [0, 1, 3]
    assert last & spec.STATUS_FAILED
    assert not last & (spec.STATUS_FEATURES_OK | spec.STATUS_DRIVER_OK)


@pytest.mark.spec("2.2.1-driver-7")
@given(unknown=ANY_BITS)
def test_no_offered_bit_is_a_reason_to_fail(unknown):
    assert negotiate(unknown | VERSION_1, VERSION_1) == VERSION_1


# -- 2.2.2 the device --------------------------------------------------------------------------------------------------


@pytest.mark.spec("2.2.2-device-1")
@pytest.mark.parametrize("offered", [0b1000, 0b0100, 0b1011, 0b1110, 0b0101])
def test_nothing_is_offered_without_what_it_requires(offered):
    with pytest.raises(errors.NegotiationError, match="requires"):
        check_offer(VERSION_1 | offered, REQUIRES)
    check_offer(VERSION_1 | 0b1111, REQUIRES)


@pytest.mark.spec("2.2.2-device-2")
@pytest.mark.parametrize("accepted", [VERSION_1 | 1 << 6, EVENT_IDX, 0, VERSION_1 | SR_IOV])
def test_features_ok_stays_clear_where_the_accepted_features_cannot_be(control, accepted):
    side = control(offered=VERSION_1 | EVENT_IDX | 1 << 5)
    side.bring_up(to=3)
    side.features(accepted)
    with pytest.raises(errors.NegotiationError):
        side.status(11)
    assert side.cells.status == 3
    side.features(VERSION_1 | 1 << 5)
    assert side.status(11) == 11


@pytest.mark.spec("2.2.2-device-2")
def test_a_feature_accepted_without_what_it_requires_is_refused():
    with pytest.raises(errors.NegotiationError, match="requires"):
        check_accepted(VERSION_1 | 0b1111, VERSION_1 | 0b1000, REQUIRES)


@pytest.mark.fault("B14")
@pytest.mark.spec("2.2.2-device-2")
def test_a_device_that_came_later_is_not_started_with_features_of_its_predecessor(control):
    side = control(offered=VERSION_1 | 1 << 5)
    side.bring_up(VERSION_1 | 1 << 5, to=11)
    side.slot.lost(side.device)
    successor = type(side.device)()
    side.slot.attach_device(successor, VERSION_1, b"")
    with pytest.raises(errors.VqshmError):
        side.status(15)
    assert "start" not in dict(successor.events)


@pytest.mark.spec("2.2.2-device-3")
@pytest.mark.parametrize("bit", FOREIGN)
def test_nothing_is_offered_that_would_not_work_here(bit):
    with pytest.raises(errors.NegotiationError):
        check_offer(VERSION_1 | 1 << bit)


# -- 6 reserved feature bits -------------------------------------------------------------------------------------------


@pytest.mark.spec("6.1-driver-1")
@given(offered=ANY_BITS, wanted=ANY_BITS)
def test_version_1_is_accepted_where_offered(offered, wanted):
    assert negotiate(offered | VERSION_1, wanted) & VERSION_1


@pytest.mark.spec("6.1-driver-5")
def test_sr_iov_is_never_negotiated():
    assert not negotiate(VERSION_1 | SR_IOV, SR_IOV) & SR_IOV
    with pytest.raises(errors.NegotiationError):
        negotiate(VERSION_1 | SR_IOV, 0, required=SR_IOV)


@pytest.mark.spec("6.2-device-1")
def test_version_1_is_offered(world):
    device = world.device()
    assert device.cells.offered & VERSION_1
    with pytest.raises(errors.NegotiationError, match="VERSION_1"):
        check_offer(EVENT_IDX)


@pytest.mark.spec("6.2-device-3")
def test_sr_iov_is_never_offered(world):
    with pytest.raises(errors.NegotiationError, match="SR_IOV"):
        world.device(features=SR_IOV)
    assert not world.device().cells.offered & SR_IOV


# -- 2.5 the configuration space ---------------------------------------------------------------------------------------


class Restless(Region):
    """A region whose device changes the configuration space in the middle of the first reads."""

    def read(self, offset, count):
        half = count // 2
        first = super().read(offset, half)
        if self.updates:
            self.updates.pop()()
        return first + super().read(offset + half, count - half)


@pytest.mark.spec("2.5.1-driver-1")
@pytest.mark.parametrize("changes", [1, 3])
@pytest.mark.parametrize("offset", [0, 8, 12])
def test_a_field_that_changes_while_it_is_read_is_read_again(changes, offset):
    memory = bytearray(64)
    region = type("Region64", (Restless,), {"updates": []})(memory)
    space, device = ConfigSpace(region, 8, 24, 0), ConfigSpace(Region(memory), 8, 24, 0)
    device.update(0, b"\x11" * 24)
    for i in range(changes):
        region.updates.insert(0, lambda i=i: device.update(0, bytes([0x22 + i]) * 24))
    assert space.u64(offset) == int.from_bytes(bytes([0x21 + changes]) * 8, "little")
    assert not region.updates


class Asker:
    """A driver without a device: notes what of the configuration space is read."""

    def __init__(self, features):
        self.features = features
        self.config = self
        self.touched = []

    def read(self, offset, count):
        self.touched.append((offset, count))
        return (100).to_bytes(count, "little")

    def request(self, readable, writable, **_):
        return bytes(writable)


@pytest.mark.spec("2.5.1-driver-2")
@pytest.mark.parametrize(
    ("operation", "feature", "field"),
    [("discard", spec.VIRTIO_BLK_F_DISCARD, 36), ("write_zeroes", spec.VIRTIO_BLK_F_WRITE_ZEROES, 48)],
)
def test_the_disk_driver_leaves_optional_fields_alone_unless_their_feature_is_there(operation, feature, field):
    without = Asker(VERSION_1)
    with pytest.raises(OSError, match="not negotiated"):
        getattr(BlkClient(without), operation)(0, 8)
    assert set(without.touched) == {(0, 8)}  # the capacity, which is always there
    along = Asker(VERSION_1 | 1 << feature)
    getattr(BlkClient(along), operation)(0, 8)
    assert set(along.touched) == {(0, 8), (field, 4)}


@pytest.mark.spec("2.5.1-driver-3")
@pytest.mark.parametrize("tail", [0, 1, 8, 4000])
def test_a_larger_configuration_space_than_needed_is_as_good(tail):
    device = ConfigSpace(region := Region(bytearray(4096 + 64)), 64, 8 + tail, 0)
    device.update(0, (77).to_bytes(8, "little"))
    driver = ConfigSpace(region, 64, 8 + tail, 0)
    assert driver.u64(0) == 77
    assert len(driver.read(0, 8 + tail)) == 8 + tail


@pytest.mark.spec("2.5.2-device-1")
def test_every_field_can_be_read_before_features_ok(control):
    content = bytes(range(64))
    side = control(offered=VERSION_1 | 1 << 5, config=content)
    for status in (0, 1, 3):
        side.status(status)
        assert side.config.read(0, 64) == content
        assert [side.config.u8(i) for i in range(64)] == list(content)
