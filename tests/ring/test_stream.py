"""Reader and Writer: a chain's buffers as one stream of bytes, and not one byte more [2.7.4, A29, G08]."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm.errors import InvalidChain, ShortBuffer, SplitOutOfBounds
from vqshm.ring import Reader, Writer

CHUNKS = st.lists(st.binary(max_size=20), max_size=8)
COUNTS = st.integers(0, 40)


class Part:
    """The model of a stream: what is left of it, and how much is gone."""

    def __init__(self, left):
        self.left = left
        self.done = 0

    def take(self, count):
        taken, self.left = self.left[:count], self.left[count:]
        self.done += len(taken)
        return taken

    def split(self, offset):
        rest = Part(self.left[offset:])
        self.left = self.left[:offset]
        return rest


READS = st.lists(
    st.tuples(st.sampled_from(["read", "read_exact", "views", "split_at", "all"]), COUNTS, st.integers(0, 5)),
    max_size=12,
)


@given(CHUNKS, READS)
def test_a_reader_gives_the_bytes_in_order_and_once(chunks, steps):
    parts = [(Reader([memoryview(chunk) for chunk in chunks]), Part(b"".join(chunks)))]
    for name, count, which in steps:
        reader, model = parts[which % len(parts)]
        assert (reader.available_bytes, reader.bytes_read) == (len(model.left), model.done)
        if name == "read":
            assert reader.read(count) == model.take(count)
        elif name == "all":
            assert reader.read() == model.take(len(model.left))
        elif name == "views":
            assert b"".join(reader.views(count)) == model.take(count)
        elif name == "split_at" and count <= len(model.left):
            parts.append((reader.split_at(count), model.split(count)))
        elif name == "split_at":
            with pytest.raises(SplitOutOfBounds) as caught:
                reader.split_at(count)
            assert caught.value.facts == {"offset": count, "limit": len(model.left)}
        elif count <= len(model.left):
            assert reader.read_exact(count) == model.take(count)
        else:
            got = len(model.take(count))
            with pytest.raises(ShortBuffer) as caught:
                reader.read_exact(count)
            assert caught.value.facts == {"wanted": count, "got": got}
    for reader, model in parts:
        assert (reader.available_bytes, reader.bytes_read) == (len(model.left), model.done)
        assert reader.read() == model.left


WRITES = st.lists(
    st.tuples(st.sampled_from(["write", "write_all", "views", "split_at"]), st.binary(max_size=40), st.integers(0, 5)),
    max_size=12,
)


@given(st.lists(st.integers(0, 20), max_size=8), WRITES)
def test_a_writer_stores_the_bytes_in_order_and_no_further(sizes, steps):
    memory = bytearray(sum(sizes))
    views, at = [], 0
    for size in sizes:
        views.append(memoryview(memory)[at : at + size])
        at += size
    expected = bytearray(len(memory))
    parts = [(Writer(views), Part(range(len(memory))))]  # the model holds the offsets that are still to be written
    for name, data, which in steps:
        writer, model = parts[which % len(parts)]
        assert (writer.available_bytes, writer.bytes_written) == (len(model.left), model.done)
        if name == "split_at" and len(data) <= len(model.left):
            parts.append((writer.split_at(len(data)), model.split(len(data))))
            continue
        if name == "split_at":
            with pytest.raises(SplitOutOfBounds):
                writer.split_at(len(data))
            continue
        fits = len(data) <= len(model.left)
        offsets = model.take(len(data))
        expected[offsets.start : offsets.start + len(offsets)] = data[: len(offsets)]
        if name == "write":
            assert writer.write(data) == len(offsets)
        elif name == "views":
            done = 0
            for view in writer.views(len(data)):
                view[:] = data[done : done + view.nbytes]
                done += view.nbytes
            assert done == len(offsets)
        elif fits:
            writer.write_all(data)
        else:
            with pytest.raises(ShortBuffer) as caught:
                writer.write_all(data)
            assert caught.value.facts == {"wanted": len(data), "got": len(offsets)}
    assert memory == expected


@pytest.mark.parametrize("offset", [-1, 5, 2**70])
def test_a_split_behind_the_end_changes_nothing(offset):
    reader = Reader([memoryview(b"abcd")])
    with pytest.raises(SplitOutOfBounds):
        reader.split_at(offset)
    assert reader.read() == b"abcd"


@pytest.mark.fault("B06")
def test_a_short_buffer_is_an_invalid_chain_and_the_end_of_a_file():
    with pytest.raises(ShortBuffer) as caught:
        Reader([memoryview(b"ab")]).read_exact(3)
    assert isinstance(caught.value, InvalidChain)
    assert isinstance(caught.value, EOFError)


@pytest.mark.fault("A29")
def test_nothing_can_be_written_into_what_the_device_may_only_read(rig):
    """A29: the writer has the device-writable bytes and no others; the reader's views are read-only."""
    r = rig()
    r.driver.add([(r.buffers, 8)], [(r.buffers + 8, 4)])
    chain = r.device.pop()
    with pytest.raises(ShortBuffer):
        chain.writer().write_all(b"w" * 12)
    assert r.peek(r.buffers, 16) == bytes(8) + b"wwww" + bytes(4)
    for view in chain.reader().views():
        with pytest.raises(TypeError):
            view[0] = 1
    assert r.device.broken is None


@pytest.mark.fault("A30", "B06")
def test_an_answer_longer_than_a_short_one_is_kept_from_stale_bytes(rig):
    """A30, B06: the driver learns how many bytes were written, and a reader over them says if they are too few."""
    r = rig()
    r.driver.add([], [(r.buffers, 64)])
    chain = r.device.pop()
    writer = chain.writer()
    writer.write_all(b"short")
    r.device.add_used(chain.head_index, writer.bytes_written)
    _, written = r.driver.reap()
    answer = Reader([r.memory.view(r.buffers, written)])
    with pytest.raises(ShortBuffer):
        answer.read_exact(16)


@pytest.mark.fault("G08")
@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.lists(st.integers(1, 300), min_size=1, max_size=8))
def test_scattered_messages_arrive_byte_for_byte(rig, sources, sinks):
    """G08: any number of segments at odd offsets, direct or through an indirect table."""
    r = rig(16)
    at = r.buffers + 1
    spans = []
    for length in (*sources, *sinks):
        spans.append((at, length))
        at += length + 1
    payload = bytes(i * 7 & 0xFF for i in range(sum(sources)))
    sent = 0
    for addr, length in spans[: len(sources)]:
        r.memory.write(addr, payload[sent : sent + length])
        sent += length
    r.driver.add(spans[: len(sources)], spans[len(sources) :])
    chain = r.device.pop()
    written = chain.writer().write(chain.reader().read())
    r.device.add_used(chain.head_index, written)
    assert r.driver.reap() == (0, min(sum(sources), sum(sinks)))
    answer = b"".join(r.memory.read(addr, length) for addr, length in spans[len(sources) :])
    assert answer == payload[:written].ljust(sum(sinks), b"\0")


@pytest.mark.parametrize("wrong", [None, "4", 1.5, b"4"])
def test_wrong_types_are_refused(wrong):
    memory = bytearray(b"abcdefgh")
    reader, writer = Reader([memoryview(memory)]), Writer([memoryview(memory)])
    for call in (lambda: reader.read(wrong), lambda: reader.read_exact(wrong), lambda: reader.split_at(wrong)):
        with pytest.raises(TypeError):
            call()
    assert reader.read() == b"abcdefgh"
    for data in (None, "text", 1.5, 7):
        for write in (writer.write, writer.write_all):
            with pytest.raises(TypeError):
                write(data)
    assert memory == b"abcdefgh"
    assert writer.available_bytes == 8


def test_no_bytes_are_looked_at_where_none_are_asked_for(rig):
    """0 is a number; a negative one is all there are."""
    r = rig()
    r.driver.add([(r.buffers, 4)], [(r.buffers + 4, 4)])
    chain = r.device.pop()
    reader, writer = chain.reader(), chain.writer()
    assert list(reader.views(0)) == []
    assert reader.available_bytes == 4
    assert sum(map(len, reader.views())) == 4
    assert list(writer.views(0)) == []
    assert sum(map(len, writer.views())) == 4
