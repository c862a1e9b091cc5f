"""Receivers believe nothing: whatever is lost, doubled, swapped or altered on the way is noticed."""

from __future__ import annotations

import pytest

from vqshm.bench import messages as content
from vqshm.bench import roles
from vqshm.bench.messages import Corrupt
from vqshm.bench.roles import alone, trips

MODES = ("single", "batch", "view", "reserve")
SIZES = (64, 4096, 1 << 16)
TURNS = 9  # of the pool: the last message of turns 1 and 9 is compared in full where messages are large


def stream(size: int, *, senders: int = 1) -> list[bytes]:
    messages = []
    for _ in range(TURNS):
        for place in zip(*(content.pool(size, sender) for sender in range(senders)), strict=True):
            messages += place
    return [*messages, *(content.end(size, len(messages) // senders, sender) for sender in range(senders))]


def units(messages: list[bytes], mode: str) -> list:
    if mode == "batch":
        return [messages[start : start + 7] for start in range(0, len(messages), 7)]
    return [memoryview(message) for message in messages] if mode in {"view", "reserve"} else messages


def received(played, messages: list[bytes], size: int, mode: str) -> dict:
    role = roles.receive_pool((played(size, mode, units(messages, mode)),), 0, {})
    next(role)
    return next(role)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_a_whole_stream_is_counted(played, size, mode):
    result = received(played, stream(size), size, mode)
    assert result["received"] == TURNS * len(content.pool(size))
    assert result["nanoseconds"] > 0


def lost(messages: list[bytes], place: int) -> None:
    del messages[place]


def doubled(messages: list[bytes], place: int) -> None:
    messages.insert(place, messages[place])


def swapped(messages: list[bytes], place: int) -> None:
    messages[place], messages[place + 1] = messages[place + 1], messages[place]


def torn(messages: list[bytes], place: int) -> None:
    altered = bytearray(messages[place])
    altered[3] ^= 1
    altered[-5] ^= 1
    messages[place] = bytes(altered)


@pytest.mark.parametrize("fault", [lost, doubled, swapped, torn])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_a_fault_on_the_way_is_noticed(played, size, mode, fault):
    messages = stream(size)
    fault(messages, len(messages) // 2)
    with pytest.raises(Corrupt):
        received(played, messages, size, mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_whole_turn_of_the_pool_that_is_lost_shows_in_the_total(played, mode):
    messages = stream(64)
    del messages[128:192]
    with pytest.raises(Corrupt, match="576 messages were sent, 512 came"):
        received(played, messages, 64, mode)


@pytest.mark.parametrize("mode", ["single", "batch"])
def test_every_byte_of_a_small_message_is_compared(played, mode):
    messages = stream(4096)
    altered = bytearray(messages[100])
    altered[2000] ^= 1
    messages[100] = bytes(altered)
    with pytest.raises(Corrupt):
        received(played, messages, 4096, mode)


def test_a_reserved_message_is_only_stamped(played):
    messages = [m[:16] + bytes(len(m) - 24) + m[-8:] for m in stream(1 << 16)]
    assert received(played, messages, 1 << 16, "reserve")["received"] == TURNS * 8
    with pytest.raises(Corrupt):
        received(played, messages, 1 << 16, "view")


def gathered(played, messages: list[bytes]) -> dict:
    role = roles.gather((played(64, "single", messages, senders=3),), 0, {})
    next(role)
    return next(role)


def test_the_streams_of_several_senders_are_checked_one_by_one(played):
    assert gathered(played, stream(64, senders=3))["received"] == 3 * 64 * TURNS


@pytest.mark.parametrize("fault", [lost, doubled, torn])
def test_a_fault_in_one_of_several_streams_is_noticed(played, fault):
    messages = stream(64, senders=3)
    fault(messages, 301)
    with pytest.raises(Corrupt):
        gathered(played, messages)


def shared(played, messages: list[bytes], fan_out: str) -> dict:
    role = roles.take_share((played(64, "single", messages, receivers=4),), 0, {"fan_out": fan_out, "ends": 0})
    next(role)
    return next(role)


def test_a_share_is_counted_by_message_until_the_sender_leaves(played):
    messages = stream(64)[:-1]
    result = shared(played, messages[::3], "share")
    assert sum(result["got"]) == len(messages[::3])
    assert result["total"] is None


def test_a_gap_in_a_broadcast_is_noticed(played):
    messages = stream(64)
    assert shared(played, messages, "broadcast")["total"] == 64 * TURNS
    del messages[200]
    with pytest.raises(Corrupt):
        shared(played, messages, "broadcast")


def test_objects_are_compared(played):
    things = content.objects() * 3
    good = [*things, {"id": -1, "total": len(things)}]

    def run(them: list) -> dict:
        role = roles.receive_objects((played(64, "single", them),), 0, {})
        next(role)
        return next(role)

    assert run(good)["received"] == len(things)
    for bad in ([*good[:70], *good[71:]], [*things, {"id": -1, "total": 1}], [*good[:127], {**good[127], "ok": 0}]):
        with pytest.raises(Corrupt):
            run(bad)


def test_a_wrong_answer_is_noticed(stub):
    with pytest.raises(Corrupt):
        trips._round_trips(lambda message: message[::-1], content.pool(64), {"seconds": 0.01})


def test_round_trips_are_told_as_quantiles_and_as_a_histogram():
    result = trips._round_trips(lambda message: message, content.pool(64), {"seconds": 0.01})
    assert result["min"] <= result["p50"] <= result["p99"] <= result["p999"] <= result["max"]
    assert sum(count for _, count in result["histogram"]) == result["trips"]


def test_a_histogram_has_four_bars_for_each_doubling():
    bars = trips.histogram([30, 33, 33, 50, 1000])
    assert [bound for bound, _ in bars] == pytest.approx([0.032, 0.032 * 2**0.25, 0.032 * 2**0.75, 1.024])
    assert [count for _, count in bars] == [1, 2, 1, 1]


def test_the_core_loop_serves_every_chain():
    queues, rings = alone.build_queues(8, 3)
    from vqshm.bench import loops

    assert loops.serve_chains(queues, rings, 5) == 3 * 5 * 8 * alone.BUFFER
    assert [queue.used_idx() for queue in queues] == [40, 40, 40]
