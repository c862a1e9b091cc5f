"""Objects come back as what they were, in a copy or in place; and nothing that a peer sends as one does harm."""

from __future__ import annotations

import array
import collections
import ctypes
import enum
import math
import struct
import sys
import typing

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vqshm.errors import MissingExtra, ProtocolError
from vqshm.message import payload
from vqshm.message.payload import arrays, frame, plain, tables

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.floats(allow_nan=False), st.text(), st.binary()
)
KEYS = st.one_of(
    st.text(), st.integers(-(1 << 63), (1 << 64) - 1), st.binary(), st.tuples(st.text(), st.integers(0, 9))
)
OBJECTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=30
)


class Colour(enum.IntEnum):
    RED = 3


class Point(typing.NamedTuple):
    x: int
    y: int


class Pair(ctypes.Structure):
    _fields_ = (("a", ctypes.c_int), ("b", ctypes.c_double))


def written(obj) -> bytes:
    """The message of an object, as the receiver would get it."""
    message = payload.encode(obj)
    if isinstance(message, payload.Body):
        memory = bytearray(b"\xee" * message.count)
        with memoryview(memory) as view:
            message.write(view)
        return bytes(memory)  # and nothing holds the view, or leaving the block would have failed
    return message if isinstance(message, bytes) else b"".join(map(bytes, map(memoryview, message)))


def refused(message: bytes, *words: str) -> None:
    """Nobody takes this message, and it says why."""
    for decode in (payload.decode, lambda message: payload.decode_in_place(memoryview(message))):
        with pytest.raises(ProtocolError) as caught:
            decode(message)
        for word in words:
            assert word in str(caught.value)


# -- msgpack -----------------------------------------------------------------------------------------------------------


@given(OBJECTS)
@example(None)
@example({})
@example({"nested": [[[{}]]], 1: {2: 3}, b"k": -0.0})
def test_what_msgpack_knows_comes_back_as_it_was(obj):
    message = written(obj)
    if not isinstance(obj, bytes):
        assert message == msgpack.packb(obj)  # no header: what any msgpack library writes is an object
    assert payload.decode(message) == payload.decode(memoryview(message)) == obj


def test_a_tuple_comes_back_as_a_list_but_as_the_key_of_a_dict():
    assert payload.decode(written((1, (2, "x")))) == [1, [2, "x"]]
    assert payload.decode(written({(1, ("x", 2)): (3,)})) == {(1, ("x", 2)): [3]}


def test_a_subclass_comes_back_as_what_it_was_derived_from():
    obj = payload.decode(written([Colour.RED, collections.OrderedDict(a=1), Point(1, 2)]))
    assert obj == [3, {"a": 1}, [1, 2]]
    assert [type(item) for item in obj] == [int, dict, list]
    assert payload.decode(written(collections.OrderedDict(a=1))) == {"a": 1}


@pytest.mark.parametrize("size", [4095, 4096, 4097, 100_000])
def test_long_lists_and_texts_come_back(size):
    for obj in ([None] * size, list(range(size)), "x" * size, {str(key): key for key in range(size)}):
        assert payload.decode(written(obj)) == obj


@pytest.mark.parametrize(
    ("obj", "error"),
    [
        (object(), TypeError),
        ({1, 2}, TypeError),
        ([{"deep": lambda: 0}], TypeError),
        (1j, TypeError),
        (1 << 64, OverflowError),
        ("\ud800", UnicodeEncodeError),
    ],
    ids=["object", "set", "function", "complex", "65 bits", "half a character"],
)
def test_what_is_no_message_is_refused_before_anything_is_sent(obj, error):
    with pytest.raises(error):
        payload.encode(obj)
    assert payload.decode(written([1])) == [1]  # and leaves nothing of it behind


def test_what_contains_itself_is_refused():
    loop: list = []
    loop.append(loop)
    with pytest.raises(ValueError, match="recursion"):
        payload.encode(loop)


def test_the_refusal_says_what_there_is():
    with pytest.raises(TypeError, match=r"this set: .*set.* numpy arrays, Arrow tables, .* dict, list"):
        payload.encode({1})


# -- bytes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "obj",
    [
        b"",
        b"x",
        bytes(range(256)) * 300,
        bytearray(b"abc"),
        memoryview(b"abcdef")[2:4],
        array.array("d", [1.0, 2.0]),
        memoryview(array.array("i", range(6))).cast("B").cast("i", (2, 3)),
        (ctypes.c_uint16 * 3)(1, 2, 3),
        Pair(1, 2.0),
        (ctypes.c_int * 0)(),
    ],
    ids=lambda obj: type(obj).__name__,
)
def test_anything_bytes_like_comes_back_as_its_bytes(obj):
    message = written(obj)
    assert payload.decode(message) == payload.decode(memoryview(message)) == bytes(memoryview(obj).tobytes())
    assert type(payload.decode(message)) is bytes
    in_place = payload.decode_in_place(memoryview(message))
    assert in_place == memoryview(obj).tobytes()
    assert in_place.obj is message
    assert message.index(0xC1) == 0
    assert len(message) == 64 + len(in_place)


def test_bytes_that_do_not_lie_in_one_piece_are_refused():
    with pytest.raises(ValueError, match="contiguous"):
        payload.encode(memoryview(b"abcdef")[::2])


# -- numpy -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def numpy():
    return pytest.importorskip("numpy")


def same(numpy, one, other) -> bool:
    """The same dtype, shape and items (NaNs of structures are compared as bytes)."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if one.dtype.names is None:
        return bool(numpy.array_equal(one, other, equal_nan=one.dtype.kind in "fcmM"))
    return all(same(numpy, one[name], other[name]) for name in one.dtype.names)


def test_arrays_come_back_as_they_were(numpy):
    extra = pytest.importorskip("hypothesis.extra.numpy")
    flat = extra.scalar_dtypes().filter(lambda dtype: dtype.itemsize)
    dtypes = flat | extra.array_dtypes(flat, allow_subarrays=True).filter(lambda dtype: dtype.itemsize)
    shapes = extra.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)

    @given(extra.arrays(dtypes, shapes), st.booleans(), st.booleans())
    def check(items, turned, stepped):
        items = items.T if turned else items
        items = items[::-2] if stepped and items.ndim else items
        message = written(items)
        copy = payload.decode(message)
        place = payload.decode_in_place(memoryview(message))
        assert same(numpy, copy, items)
        assert same(numpy, place, items)
        assert copy.flags.writeable
        assert copy.flags.c_contiguous
        assert place.flags.c_contiguous
        if items.size:
            start = len(message) - items.nbytes
            assert start % 64 == 0
            assert place.ctypes.data == numpy.frombuffer(message, "u1").ctypes.data + start
            assert not place.flags.writeable

    check()


def interesting(numpy):
    aligned = numpy.dtype([("a", "i1"), ("b", "f8")], align=True)
    overlap = numpy.dtype({"names": ["a", "b"], "formats": ["<i4", "<i2"], "offsets": [0, 2], "itemsize": 7})
    nested = numpy.dtype([("p", [("x", ">f4"), ("y", "S3", (2,))], (2, 1)), ("at", "M8[ns]")])
    return [
        numpy.arange(6).reshape(2, 3),
        numpy.arange(6).reshape(2, 3).T,
        numpy.asfortranarray(numpy.eye(3)),
        numpy.arange(10)[::-3],
        numpy.broadcast_to(numpy.int16(7), (3, 2)),
        numpy.array(5.0),
        numpy.zeros(0),
        numpy.zeros((3, 0, 2), "S4"),
        numpy.array(["a", "bcd"]),
        numpy.array(["2020-01-01", "NaT"], "M8[D]"),
        numpy.array([1, 2], "m8[25us]"),
        numpy.array(["NaT"], "M8[s]"),
        numpy.array([1, 2], ">u4"),
        numpy.array([1j], "c16"),
        numpy.array([1.5], "f2"),
        numpy.array([1], numpy.longdouble),
        numpy.array([b"abc"], "V3"),
        numpy.zeros(3, aligned),
        numpy.zeros(3, overlap),
        numpy.ones((2, 2), nested)[:, 1],
        numpy.zeros(2, [(("title", "name"), "<i4"), ("other", "?")]),
    ]


def test_arrays_of_every_sort_come_back(numpy):
    for items in interesting(numpy):
        assert same(numpy, payload.decode(written(items)), items), items.dtype


def test_scalars_of_numpy_come_back_as_arrays_of_no_dimensions(numpy):
    for scalar in (numpy.float32(2.5), numpy.int64(3), numpy.bool_(True), numpy.str_("abc"), numpy.datetime64(1, "s")):
        back = payload.decode(written(scalar))
        assert back.shape == ()
        assert (back.dtype, back[()]) == (scalar.dtype, scalar)


def test_kinds_of_arrays_come_back_as_arrays(numpy):
    record = numpy.rec.array([(1, 2.0)], dtype=[("a", "<i4"), ("b", "<f8")])
    assert payload.decode(written(record)).tolist() == [(1, 2.0)]
    mapped = numpy.lib.stride_tricks.sliding_window_view(numpy.arange(4), 2)
    assert payload.decode(written(mapped)).tolist() == [[0, 1], [1, 2], [2, 3]]


def test_arrays_that_would_not_come_back_are_refused(numpy):
    for items in (
        numpy.array([None]),
        numpy.zeros(1, [("a", "O")]),
        numpy.ma.zeros(3),
        numpy.zeros(2, []),
        numpy.zeros(1, [(f"a field of a long name, {number:0100}", "u1") for number in range(1000)]),
    ):
        with pytest.raises((TypeError, ValueError)):
            payload.encode(items)
    with pytest.raises(TypeError, match="dtype of numbers"):
        payload.encode(numpy.array([{}]))


def test_the_fields_of_one_array_can_be_renamed_without_changing_the_next(numpy):
    message = written(numpy.zeros(2, [("a", "i4"), ("b", "i4")]))
    payload.decode(message).dtype.names = ("x", "y")
    assert payload.decode(message).dtype.names == ("a", "b")


def described(dtype, shape, body=b"", **wrong) -> bytes:
    """A message that says it is such an array."""
    return frame.header(frame.ARRAY, wrong.get("count", len(body)), msgpack.packb([dtype, shape])) + body


NO_DTYPES = [
    *(
        "O",
        "|O",
        "|O8",
        "f8,f8",
        "(2,)f8",
        "<f8;",
        "object",
        "|T16",
        "float64",
        "",
        "<x8",
        "<f7",
        "<f800000000",
        "<M8[x]",
    ),
    *(
        "__import__('os')",
        "<f8\n",
        "|V0",
        "|S0",
        8,
        None,
        1.5,
        True,
        b"<f8",
        [],
        {},
        ["<f8"],
        ["<f8", []],
        [["<f8"], [1]],
    ),
    *(
        ["|O", [2]],
        ["<f8", [-1]],
        ["<f8", [1 << 62, 1 << 62]],
        ["<f8", [1 << 70 >> 7]],
        ["<f8", [True]],
        ["<f8", [2, "2"]],
    ),
    ["<f8", [1]],  # not for the items of an array
    {"names": ["a"], "formats": ["|O"], "offsets": [0], "itemsize": 8},
    {"names": ["a"], "formats": ["<f8"], "offsets": [1], "itemsize": 8},
    {"names": ["a"], "formats": ["<f8"], "offsets": [-8], "itemsize": 8},
    {"names": ["a"], "formats": ["<f8"], "offsets": [0], "itemsize": 1 << 62},
    {"names": ["a"], "formats": ["<f8"], "offsets": [0], "itemsize": True},
    {"names": ["a", "a"], "formats": ["<f8", "<f8"], "offsets": [0, 0], "itemsize": 8},
    {"names": ["a"], "formats": [], "offsets": [0], "itemsize": 8},
    {"names": [1], "formats": ["<f8"], "offsets": [0], "itemsize": 8},
    {"names": [], "formats": [], "offsets": [], "itemsize": 0},
    {"names": ["a"], "formats": ["<f8"], "offsets": [0], "itemsize": 8, "titles": [8]},
    {"names": ["a"], "formats": ["<f8"], "offsets": [0], "itemsize": 8, "titles": "t"},
    {"names": ["a"], "formats": ["<f8"], "offsets": [0], "itemsize": 8, "aligned": True},
    {"names": "a", "formats": ["<f8"], "offsets": [0], "itemsize": 8},
]


def test_an_array_that_is_not_described_is_refused(numpy):
    refused(frame.header(frame.ARRAY, 0), "msgpack")
    refused(frame.header(frame.ARRAY, 0, b"\xc0"), "dtype")


@pytest.mark.parametrize("dtype", NO_DTYPES, ids=repr)
def test_a_dtype_that_is_not_plain_is_refused(numpy, dtype):
    refused(described(dtype, [1], bytes(8)))


def test_a_dtype_that_is_nested_without_end_is_refused(numpy):
    dtype = "<f8"
    for _ in range(30):
        dtype = [dtype, [1]]
    refused(described({"names": ["a"], "formats": [dtype], "offsets": [0], "itemsize": 8}, [1], bytes(8)), "deep")


@pytest.mark.parametrize(
    "shape",
    [[-1], [2], [], [1 << 63], [1 << 62, 4], [1, "1"], [1.0], [True], None, "1", 1, [1] * 65, [0], [0, 1 << 62]],
    ids=repr,
)
def test_a_shape_that_does_not_fit_the_body_is_refused(numpy, shape):
    refused(described("<f8", shape, bytes(24)))


def test_no_items_in_impossible_numbers_are_refused(numpy):
    refused(described("<f8", [0, 1 << 62]), "numpy refuses")


def test_without_numpy_an_array_that_comes_says_what_to_install(numpy, monkeypatch):
    message = written(numpy.zeros(3))
    arrays._numpy.cache_clear()
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(MissingExtra, match=r"pip install 'vqshm\[numpy\]'"):
        payload.decode(message)
    monkeypatch.undo()
    assert payload.decode(message).tolist() == [0, 0, 0]


# -- Arrow -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def arrow():
    return pytest.importorskip("pyarrow")


def example_table(arrow):
    return arrow.table(
        {
            "a": [1, 2, None],
            "b": ["x", "yy", None],
            "c": arrow.array(["u", "v", "u"]).dictionary_encode(),
            "d": [[1], [], None],
            "e": [{"q": 1.5}, {"q": None}, None],
        }
    )


def test_tables_come_back_as_they_were(arrow):
    table = example_table(arrow)
    many = arrow.concat_tables([table, table.slice(1), table])
    plain_rows = arrow.record_batch({"a": [1, 2, 3], "b": ["x", None, "z"]})
    for obj in (
        *(table, table.slice(1, 1), table.slice(0, 0), many, arrow.table({}), table.schema.empty_table()),
        *(table.replace_schema_metadata({"k": "v"}), plain_rows, plain_rows.slice(2), table.to_batches()[0]),
    ):
        message = written(obj)
        for back in (payload.decode(message), payload.decode_in_place(memoryview(message))):
            assert type(back) is type(obj)
            assert back.equals(obj, check_metadata=True)
            assert (back.num_rows, back.schema) == (obj.num_rows, obj.schema)
            back.validate(full=True)


def test_a_table_in_place_is_read_where_it_lies(arrow):
    table = arrow.table({"a": arrow.array(range(1000), arrow.int64())})
    message = written(table)
    first = arrow.py_buffer(message).address
    place = payload.decode_in_place(memoryview(message)).column("a").chunk(0).buffers()[1]
    assert first < place.address < first + len(message)
    assert place.address - first >= 64
    copy = payload.decode(message).column("a").chunk(0).buffers()[1]
    assert not first <= copy.address < first + len(message)


def test_a_table_that_cannot_be_written_after_all_keeps_nothing_of_the_memory(arrow, monkeypatch):
    message = payload.encode(example_table(arrow))
    memory = bytearray(message.count)
    monkeypatch.setattr(tables, "_write", pow)  # fails, and leaves no frame of its own in the traceback
    with memoryview(memory) as view, pytest.raises(TypeError) as error:
        message.write(view)
    memory.clear()  # which fails while anybody looks at it
    assert error.traceback


def stream(arrow, table, **options) -> bytes:
    sink = arrow.BufferOutputStream()
    with arrow.ipc.new_stream(sink, table.schema, options=arrow.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def framed(kind: int, body: bytes) -> bytes:
    return frame.header(kind, len(body)) + body


def test_a_compressed_table_is_refused(arrow):
    words = [str(number) for number in range(1000)]
    for table in (arrow.table({"a": words}), arrow.table({"a": arrow.array(words).dictionary_encode()})):
        assert payload.decode(framed(frame.TABLE, stream(arrow, table))).equals(table)
        refused(framed(frame.TABLE, stream(arrow, table, compression="lz4")), "compressed")


def test_a_table_that_is_cut_off_or_goes_on_is_refused(arrow):
    body = stream(arrow, example_table(arrow))
    for length in (*range(0, len(body) - 8, 4), 1):
        decoded = None
        try:
            decoded = payload.decode(framed(frame.TABLE, body[:length]))
        except ProtocolError:
            continue
        assert decoded.num_rows == 0, length  # cut between two messages: a stream may end there
    refused(framed(frame.TABLE, body + bytes(8)))
    refused(framed(frame.TABLE, b""))


def test_a_batch_is_one_batch(arrow):
    table = example_table(arrow)
    refused(framed(frame.BATCH, stream(arrow, arrow.concat_tables([table, table]))), "2 batches")
    refused(framed(frame.BATCH, stream(arrow, table.schema.empty_table())), "0 batches")


def test_offsets_that_lead_out_of_a_table_are_refused(arrow):
    text = arrow.array(["ab", "cd"])
    offsets = struct.pack("<3i", 0, 2, 4)
    body = stream(arrow, arrow.table({"a": text}))
    assert body.count(offsets) == 1
    refused(framed(frame.TABLE, body.replace(offsets, struct.pack("<3i", 0, 2, 1 << 30))))


def test_without_pyarrow_a_table_that_comes_says_what_to_install(arrow, monkeypatch):
    message = written(example_table(arrow))
    tables._pyarrow.cache_clear()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pip install 'vqshm\[arrow\]'"):
        payload.decode(message)
    monkeypatch.undo()
    assert payload.decode(message).num_rows == 3


# -- what a peer may send ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "word"),
    [
        (b"", "empty"),
        (b"\xc1", "header"),
        (b"\xc1\x01" + bytes(61), "header"),
        (b"\xc1\x00" + bytes(62), "unknown kind 0"),
        (b"\xc1\x05" + bytes(62), "unknown kind 5"),
        (struct.pack("<BBHIQ", 0xC1, 1, 0, 0, 64) + bytes(48), "starts at 0"),
        (struct.pack("<BBHIQ", 0xC1, 1, 63, 0, 1) + bytes(48), "starts at 63"),
        (struct.pack("<BBHIQ", 0xC1, 1, 128, 0, 0) + bytes(48), "starts at 128"),
        (struct.pack("<BBHIQ", 0xC1, 1, 64, 49, 0) + bytes(48), "49 bytes"),
        (struct.pack("<BBHIQ", 0xC1, 1, 64, (1 << 32) - 1, 0) + bytes(48), "4294967295 bytes"),
        (struct.pack("<BBHIQ", 0xC1, 1, 64, 0, 1) + bytes(48), "says it has 1"),
        (struct.pack("<BBHIQ", 0xC1, 1, 64, 0, 0) + bytes(49), "says it has 0"),
        (struct.pack("<BBHIQ", 0xC1, 1, 64, 0, (1 << 64) - 1) + bytes(48), "says it has 18446744073709551615"),
        (b"\xdd\xff\xff\xff\xff", "msgpack"),
        (b"\xdf\xff\xff\xff\xff", "msgpack"),
        (b"\xdb\xff\xff\xff\xffx", "msgpack"),
        (b"\xc6\xff\xff\xff\xffx", "msgpack"),
        (b"\xc9\xff\xff\xff\xff\x01x", "msgpack"),
        (b"\x92\x01", "msgpack"),
        (b"\x01\x02", "msgpack"),
        (b"\xa1\xff", "msgpack"),
        (b"\x91\xc1", "msgpack"),
        (b"\x81\x81\x01\x02\x03", "msgpack"),  # a dict as a key
        (b"\xc7\x01\xff\x00", "msgpack"),  # a moment of one byte
        (b"\x91" * 100_000 + b"\x00", "msgpack"),
        (b"\x81\x00" * 100_000 + b"\x00", "msgpack"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[:16].hex(),
)
def test_a_message_that_is_no_object_is_refused_by_name(message, word):
    refused(message, word)


def test_lists_that_claim_to_be_long_take_no_memory():
    tracemalloc = pytest.importorskip("tracemalloc")
    claim = b"\xdd" + struct.pack(">I", 1 << 20)
    tracemalloc.start()
    try:
        refused(claim * 900 + bytes(1 << 20), "msgpack")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20  # not 900 times 8 MiB
    finally:
        tracemalloc.stop()


def anything(message: bytes) -> None:
    for decode in (payload.decode, lambda message: payload.decode_in_place(memoryview(message))):
        try:
            decode(message)
        except ProtocolError:
            pass
        except MissingExtra:
            assert message[1] != frame.BYTES


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"\xc1" + tail))
def test_no_bytes_do_harm(message):
    anything(message)


@given(st.sampled_from(frame._KINDS), st.binary(max_size=100) | OBJECTS.map(msgpack.packb), st.binary(max_size=200))
def test_no_frame_does_harm(kind, description, body):
    anything(frame.header(kind, len(body), description) + body)


def bent(draw, message: bytes) -> bytes:
    """The message with up to four of its bytes changed."""
    changed = bytearray(message)
    for _ in range(draw(st.integers(1, 4))):
        changed[draw(st.integers(0, len(message) - 1))] = draw(
            st.integers(0, 255) | st.sampled_from([0, 1, 127, 128, 255])
        )
    return bytes(changed)


@given(st.data())
def test_no_change_to_a_message_of_an_array_does_harm(numpy_messages, data):
    anything(bent(data.draw, data.draw(st.sampled_from(numpy_messages))))


@given(st.data())
def test_no_change_to_a_message_of_a_table_does_harm(arrow_messages, data):
    anything(bent(data.draw, data.draw(st.sampled_from(arrow_messages))))


@pytest.fixture(scope="module")
def numpy_messages():
    return [written(items) for items in interesting(pytest.importorskip("numpy"))]


@pytest.fixture(scope="module")
def arrow_messages():
    arrow = pytest.importorskip("pyarrow")
    table = example_table(arrow)
    return [
        written(obj)
        for obj in (table, table.to_batches()[0], arrow.table({"a": [1, 2]}), arrow.concat_tables([table] * 2))
    ]


def test_packers_are_used_again_but_not_those_that_grew():
    plain._packers.clear()
    payload.encode([1])
    payload.encode([2])
    assert len(plain._packers) == 1
    payload.encode("x" * (2 << 20))
    assert plain._packers == []


def test_not_a_number_comes_back_as_one():
    assert math.isnan(payload.decode(written(math.nan)))
