"""A channel has a lane for each pair, refuses what cannot be, and is gone after its block."""

from __future__ import annotations

from itertools import chain

import pytest
from vqshm_harness import BOTH, PATIENCE, new_name

from vqshm import DeviceSpec, Receiver, Sender, open_channel
from vqshm.errors import (
    CoordinatorGone,
    DeadlineExceeded,
    InvalidSize,
    InvalidState,
    NameInUse,
    NotFound,
    RoleTaken,
    RuleError,
)
from vqshm.host.system import shm
from vqshm.message.channel import lane_names, lanes_of


@BOTH
def test_one_pair_has_one_lane_that_need_not_be_named(notify):
    name = new_name()
    with open_channel(name, notify=notify) as channel:
        assert channel.name == name
        assert lanes_of(name) == [["lane"]]
        with Receiver.attach(name) as receiver, Sender.attach(name) as sender:
            assert (sender.region, sender.lane, sender.notify) == (name, "lane", notify)
            sender.send(b"x")
            assert receiver.recv(PATIENCE) == b"x"
    assert name not in shm.existing()


def test_a_channel_of_sealed_memory_leaves_no_name_there():
    name = new_name()
    with open_channel(name, memory="memfd"), Receiver.attach(name) as receiver, Sender.attach(name) as sender:
        assert name not in shm.existing()
        sender.send(b"x")
        assert receiver.recv(PATIENCE) == b"x"


def test_several_pairs_have_a_lane_each():
    name = new_name()
    with open_channel(name, senders=3, receivers=2, size=8, buffer_bytes=4096):
        lanes = lanes_of(name)
        assert lanes == [["s0r0", "s0r1"], ["s1r0", "s1r1"], ["s2r0", "s2r1"]]
        assert list(chain(*lanes)) == lane_names(3, 2)
        with pytest.raises(NotFound, match=r"s0r0.*s2r1"):
            Receiver.attach(name)
        for lane in chain(*lanes):
            with Receiver.attach(name, lane) as receiver, Sender.attach(name, lane) as sender:
                sender.send(lane.encode())
                assert receiver.recv(PATIENCE) == lane.encode()


def test_the_sizes_asked_for_are_those_of_each_lane():
    name = new_name()
    with (
        open_channel(name, size=4, buffer_bytes=8192),
        Receiver.attach(name) as receiver,
        Sender.attach(name) as sender,
    ):
        assert sender.capacity == 8192
        for _ in range(4):
            sender.send(b"x", 0)
        with pytest.raises(DeadlineExceeded):
            sender.send(b"x", 0)
        assert receiver.qsize() == 4


@pytest.mark.parametrize(("senders", "receivers"), [(0, 1), (1, 0), (-1, -1), (65, 1), (1, 65), (13, 5)])
def test_a_channel_of_no_lanes_or_too_many_is_refused(senders, receivers):
    with pytest.raises(ValueError, match="1 to 64 lanes"):
        open_channel(new_name(), senders=senders, receivers=receivers)


def test_sixty_four_lanes_are_not_too_many():
    name = new_name()
    with open_channel(name, senders=8, receivers=8, size=2, buffer_bytes=4096):
        assert len(list(chain(*lanes_of(name)))) == 64


@pytest.mark.parametrize("size", [0, -1, 3, 100, 65536])
def test_a_size_that_is_no_power_of_two_is_refused(size):
    with pytest.raises(InvalidSize):
        open_channel(new_name(), size=size)


@pytest.mark.parametrize(
    "wrong",
    [{"buffer_bytes": 0}, {"buffer_bytes": -1}, {"buffer_bytes": 1 << 50}, {"notify": "smoke"}, {"timeout": -1}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_cannot_be_is_refused_before_anything_is_made(wrong):
    name = new_name()
    with pytest.raises(ValueError, match=r"must be|is one of|at least"):
        open_channel(name, **wrong)
    assert name not in shm.existing()


@pytest.mark.parametrize("name", ["", "Name", "a/b", "x" * 40, "ä"])
def test_a_name_of_another_shape_is_refused(name):
    with pytest.raises(RuleError):
        open_channel(name)


def test_the_smallest_channel_carries_messages_one_by_one():
    name = new_name()
    with open_channel(name, size=1, buffer_bytes=64), Receiver.attach(name) as receiver, Sender.attach(name) as sender:
        for number in range(100):
            message = bytes([number]) * (number % 65)
            sender.send(message, PATIENCE)
            assert receiver.recv(PATIENCE) == message
            with pytest.raises(DeadlineExceeded):
                receiver.recv(0)  # which gives back what was held


def test_a_name_in_use_is_refused_and_its_owner_not_disturbed():
    name = new_name()
    with open_channel(name), Receiver.attach(name) as receiver:
        with pytest.raises(NameInUse, match=name):
            open_channel(name)
        with Sender.attach(name) as sender:
            sender.send(b"x")
            assert receiver.recv(PATIENCE) == b"x"


def test_an_unknown_region_is_not_found_and_the_existing_ones_are_listed():
    name = new_name()
    with open_channel(name):
        for attach in (Sender.attach, Receiver.attach, lanes_of):
            with pytest.raises(NotFound, match=name):
                attach("nowhere")


def test_an_unknown_lane_is_not_found_and_the_existing_ones_are_listed():
    name = new_name()
    with open_channel(name, senders=2):
        for attach in (Sender.attach, Receiver.attach):
            with pytest.raises(NotFound, match=r"s0r0, s1r0"):
                attach(name, "s9r9")


def test_a_region_that_is_no_channel_has_no_lanes(make_region):
    region = make_region()
    with pytest.raises(NotFound, match="no channel"):
        lanes_of(region.name)


def test_a_receiver_refuses_a_device_that_is_no_lane_and_leaves_it_free(make_region):
    region = make_region()
    with pytest.raises(RuleError, match="no lane"):
        Receiver.attach(region.name)
    region.echo()


def test_a_sender_refuses_a_device_that_is_no_lane_at_once_and_leaves_it_free(make_region):
    region = make_region(DeviceSpec("two", 0x7700), DeviceSpec("echo0", 0x7601))
    with pytest.raises(RuleError, match="no lane"):
        Sender.attach(region.name, "echo0", timeout=0.2)  # nobody serves it: a lane would be waited for
    region.echo("echo0")
    with pytest.raises(RuleError, match="no lane"):
        Sender.attach(region.name, "echo0", timeout=PATIENCE)


def test_each_role_of_a_lane_is_taken_once():
    name = new_name()
    with open_channel(name), Receiver.attach(name), Sender.attach(name):
        with pytest.raises(RoleTaken):
            Receiver.attach(name)
        with pytest.raises(RoleTaken):
            Sender.attach(name)


def test_a_sender_without_a_receiver_waits_for_its_timeout_and_leaves_the_role_free():
    name = new_name()
    with open_channel(name):
        for _ in range(3):
            with pytest.raises(DeadlineExceeded, match=f"{name}/lane"):
                Sender.attach(name, timeout=0.02)
        with Receiver.attach(name), Sender.attach(name):
            pass


def test_after_its_block_a_channel_ends_for_those_inside():
    name = new_name()
    with open_channel(name):
        receiver = Receiver.attach(name)
    with pytest.raises(InvalidState, match="closing"):
        receiver.recv()
    receiver.close()
    with pytest.raises((NotFound, CoordinatorGone)):
        Receiver.attach(name)
