"""The ring halves, each with a hostile other side, and the walk alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fuzzing.feed import BASE, BUFFERS, TABLES, Feed, Hand, Script, check_broken
from vqshm.errors import VqshmError
from vqshm.ring import QueueConfig

if TYPE_CHECKING:
    from vqshm.ring import DescriptorChain

STARTS = (0, 65535, 65530, 0x7FFF)
MOST_STEPS = 200
SEED_STEPS = 65536 + 32  # a table of 65,535 entries behind one of 16


def device(data: bytes) -> list[str]:  # noqa: C901, PLR0912, PLR0915 - a list of steps
    """The device half, on the memory of a hostile driver."""
    feed, script = Feed(data), Script()
    size, start, options = 1 << feed.upto(4), feed.pick(STARTS), feed.number(1)
    hand = Hand(feed, size, start)
    config = QueueConfig(hand.layout, event_idx=bool(options & 1), indirect=bool(options & 2), name="q")
    strict = options & 0xC != 0xC
    queue = config.device(hand.memory, strict=strict)
    queue.seek(start, start)
    held: list[DescriptorChain] = []

    def pop() -> Any:
        chain = queue.pop()
        if chain is None:
            return None
        held.append(chain)
        return look_at(chain, size, strict=strict)

    def give(*, exact: bool) -> str:
        chain = held.pop(feed.upto(len(held) - 1)) if held else None
        head = chain.head_index if chain is not None and exact else feed.number(1) - 8
        written = feed.pick((0, 1, 8, chain.writable_bytes if chain is not None else 64, feed.number(4)))
        queue.add_used(head, written)
        return f"{head} {written}"

    def stream() -> Any:
        if not held:
            return "nothing"
        chain = held[-1]
        got = chain.reader().read(feed.number(1))
        return f"{got.hex()} {chain.writer().write(feed.take(feed.upto(32)))}"

    for _ in range(MOST_STEPS):
        if not feed.more:
            break
        step = feed.upto(15)
        if step < 4:
            hand.describe()
        elif step < 7:
            hand.offer()
        elif step == 7:
            hand.poke_anywhere()
        elif step == 8:
            hand.meddle("avail_ring")
        elif step < 12:
            check_broken(queue, script.attempt("pop", pop))
        elif step == 12:
            exact = feed.upto(3) > 0
            script.attempt("add_used", lambda exact=exact: give(exact=exact))  # type: ignore[misc]
        elif step == 13:
            script.attempt("stream", stream)
        elif step == 14:
            script.attempt("notify", queue.needs_notification)
            check_broken(queue, script.attempt("enable", queue.enable_notification))
        else:
            what = feed.upto(3)
            if what == 0:
                script.attempt("back", queue.go_to_previous_position)
            elif what == 1:
                script.attempt("disable", queue.disable_notification)
            elif what == 2:
                script.attempt("heads", lambda: list(iter(iter(queue).next_head, -1)))
            else:
                check_broken(queue, script.attempt("available", queue.available))
    return [*script.lines, f"{queue.next_avail} {queue.next_used} {hand.digest()}"]


def look_at(chain: DescriptorChain, size: int, *, strict: bool) -> str:
    """A chain as text, after a look whether it keeps what it promises."""
    descriptors = []
    for descriptor in chain:
        descriptors.append((descriptor.addr, descriptor.len, descriptor.flags, descriptor.next))
        assert len(descriptors) <= (size if strict else SEED_STEPS), "a walk that does not end"
    if strict:
        assert descriptors, "an empty chain"
        for addr, length, _, _ in descriptors:
            chain.memory.check(addr, length)
        assert chain.readable_bytes + chain.writable_bytes == sum(d[1] for d in descriptors) < 1 << 32
        assert chain.writable_bytes == sum(d[1] for d in descriptors if d[2] & 2)
        assert chain.reader().available_bytes == chain.readable_bytes
        assert chain.writer().available_bytes == chain.writable_bytes
    shown = descriptors if len(descriptors) <= 32 else [len(descriptors), hash(tuple(descriptors))]
    return f"{chain.head_index} {shown}"


def driver(data: bytes) -> list[str]:  # noqa: C901 - likewise
    """The driver half, with a hostile device."""
    feed, script = Feed(data), Script()
    size, start, options = 1 << feed.upto(4), feed.pick(STARTS), feed.number(1)
    hand = Hand(feed, size, start)
    indirect = bool(options & 2)
    config = QueueConfig(hand.layout, event_idx=bool(options & 1), indirect=indirect, name="q")
    queue = config.driver(hand.memory, indirect_tables=(TABLES, 4) if size <= 16 else None)
    queue.seek(start)
    flying: dict[int, int] = {}  # by token: descriptors

    def add() -> int:
        readable = [(BUFFERS + 8 * feed.number(1), feed.pick((8, 1, 64, 0))) for _ in range(feed.upto(2))]
        writable = [(BUFFERS + 8 * feed.number(1), feed.pick((8, 1, 64, -1))) for _ in range(feed.upto(2))]
        free = queue.num_free
        token = queue.add(readable, writable, publish=bool(feed.upto(2)))
        assert token not in flying, "a token is handed out twice"
        flying[token] = free - queue.num_free
        return token

    def reap() -> Any:
        found = queue.reap()
        if found is not None:
            assert found[0] in flying, "a token came back that was not out"
            del flying[found[0]]
        return found

    for _ in range(MOST_STEPS):
        if not feed.more:
            break
        step = feed.upto(11)
        if step < 4:
            script.attempt("add", add)
        elif step < 6:
            hand.give_back(list(flying))
        elif step < 8:
            check_broken(queue, script.attempt("reap", reap))
        elif step == 8:
            hand.meddle("used_ring")
        elif step == 9:
            script.attempt("publish", queue.publish)
            script.attempt("kick", queue.needs_kick)
        elif step == 10:
            after = feed.upto(20)
            check_broken(queue, script.attempt("enable", lambda after=after: queue.enable_notification(after)))  # type: ignore[misc]
        else:
            script.attempt("used", queue.used)
    assert queue.in_flight == len(flying), "chains in flight are miscounted"
    assert queue.num_free + sum(flying.values()) == size, "descriptors are lost"
    if queue.broken is None:
        check_free_list(queue, flying)
    script.lines.append(f"{queue.last_used} {hand.digest()}")
    assert set(flying) <= set(queue.detach_unused()), "a chain in flight was forgotten"
    return script.lines


def check_free_list(queue: Any, flying: dict[int, int]) -> None:
    """The free descriptors are all there, once each, and none of them is in use: taken one by one, they say so."""
    taken = [queue.add([(BASE, 1)], publish=False) for _ in range(queue.num_free)]
    assert len(set(taken)) == len(taken) == queue.size - sum(flying.values()), "the free list is no permutation"
    assert not set(taken) & set(flying), "a descriptor is free and in use"


def chain(data: bytes) -> list[str]:
    """The walk alone: raw bytes as descriptor table and indirect tables, in both policies."""
    feed, script = Feed(data), Script()
    size = 1 << feed.upto(4)
    hand = Hand(feed, size)
    heads = feed.upto(size - 1)
    raw = feed.upto(1)
    while feed.more and not raw:
        hand.describe()
    if raw:
        hand.poke(hand.layout.desc_table, feed.take(16 * size))
        hand.poke(TABLES, feed.rest()[:0x400])
    config = QueueConfig(hand.layout, indirect=True, name="q")
    for strict in (True, False):
        queue = config.device(hand.memory, strict=strict)
        hand.poke(hand.layout.avail_ring, bytes((0, 0, 1, 0, heads, 0)))

        def pop(queue: Any = queue, strict: bool = strict) -> Any:  # noqa: FBT001 - of this turn of the loop
            chain = queue.pop()
            assert chain is not None
            found = look_at(chain, size, strict=strict)
            try:
                return f"{found} {chain.reader().read(64).hex()}"
            except VqshmError as error:
                assert not strict, "a chain that was checked cannot be read"
                return f"{found} {error}"

        check_broken(queue, script.attempt("pop", pop))
    return [*script.lines, hand.digest()]
