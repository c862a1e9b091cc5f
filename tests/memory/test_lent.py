"""Memory lent in place: it is in use for exactly as long as somebody can look at it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm import core
from vqshm.errors import GuestMemory
from vqshm.memory import Region
from vqshm.memory.lent import Lent, new_lent

MAKERS = pytest.mark.parametrize("make", [Lent, new_lent], ids=["Lent", "new_lent"])


def window(size=64):
    buffer = bytearray(range(size))
    return buffer, Region(buffer)


@MAKERS
@pytest.mark.parametrize("readonly", [True, False])
@given(st.integers(0, 64), st.data())
def test_a_view_is_the_memory_itself(make, readonly, offset, data):
    buffer, region = window()
    count = data.draw(st.integers(0, 64 - offset))
    lent = make(region, offset, count, readonly)
    assert not lent.in_use
    view = lent.view()
    assert view == bytes(range(offset, offset + count))
    assert (view.format, view.ndim, view.itemsize, view.nbytes) == ("B", 1, 1, count)
    assert view.readonly == readonly
    assert view.c_contiguous
    if count:
        assert lent.in_use
        buffer[offset] = 99
        assert view[0] == 99
        if readonly:
            with pytest.raises(TypeError):
                view[0] = 1
        else:
            view[-1] = 77
            assert buffer[offset + count - 1] == 77
    view.release()
    assert not lent.in_use


WAYS = {
    "slice": lambda view: view[1:3],
    "empty slice": lambda view: view[2:2],
    "strided slice": lambda view: view[::2],
    "cast": lambda view: view.cast("I"),
    "cast to two dimensions": lambda view: view.cast("B", shape=[2, 4]),
    "toreadonly": memoryview.toreadonly,
    "memoryview": memoryview,
    "slice of a slice": lambda view: view[1:][1:],
    "ctypes array": (ctypes.c_ubyte * 8).from_buffer,
    "iterator": lambda view: iter(view[1:]),
    "region": Region,
}


@MAKERS
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_whatever_is_made_from_a_view_keeps_it_in_use(make, way):
    _, region = window()
    lent = make(region, 8, 8, False)
    view = lent.view()
    kept = way(view)
    try:
        view.release()
    except BufferError:  # something was made from this very object; slices are objects of their own
        del view
    assert lent.in_use
    del kept
    gc.collect()
    assert not lent.in_use


@MAKERS
def test_what_was_never_looked_at_is_not_in_use(make):
    _, region = window()
    lent = make(region, 0, 8, True)
    gc.collect()
    assert not lent.in_use


@MAKERS
@pytest.mark.parametrize("count", [0, 8])
def test_it_is_viewed_once(make, count):
    _, region = window()
    lent = make(region, 0, count, True)
    view = lent.view()
    with pytest.raises(RuntimeError, match="once"):
        lent.view()
    assert len(view) == count


@MAKERS
def test_after_close_nothing_is_opened_any_more(make):
    _, region = window()
    lent = make(region, 0, 8, True)
    kept = lent.view().obj  # whatever a view says it was made from
    lent.close()
    with pytest.raises(RuntimeError):
        lent.view()
    if core.kind() == "compiled":  # interpreted, `kept` counts as a use, so nobody closes
        with pytest.raises((BufferError, ValueError, RuntimeError)):
            memoryview(kept)
    else:
        assert lent.in_use


@MAKERS
@pytest.mark.parametrize(
    ("offset", "count"), [(0, 65), (64, 1), (65, 0), (-1, 1), (-1, 0), (0, -1), (2**62, 2**62), (1, 2**63 - 1)]
)
def test_what_does_not_lie_in_the_window_is_not_lent(make, offset, count):
    buffer, region = window()
    with pytest.raises(GuestMemory):
        make(region, offset, count, True)
    del region
    gc.collect()
    buffer.append(1)  # nobody holds it


@MAKERS
def test_a_read_only_window_lends_nothing_to_be_written(make):
    region = Region(bytes(range(8)))
    if core.kind() == "compiled":
        assert make(region, 0, 8, False).view().readonly
    view = make(region, 0, 8, True).view() if core.kind() == "compiled" else None
    assert view is None or view == bytes(range(8))


@MAKERS
@pytest.mark.parametrize("wrong", [None, 3, b"bytes", object()], ids=repr)
def test_it_is_lent_from_a_region(make, wrong):
    with pytest.raises((TypeError, AttributeError)):
        make(wrong, 0, 1, True)


def test_a_view_that_is_out_cannot_be_pulled_away():
    buffer, region = window()
    lent = Lent(region, 0, 8, False)
    view = lent.view()
    other = Region(bytearray(8))
    with contextlib.suppress(RuntimeError):
        lent.__init__(other, 0, 8, False)
    del region
    gc.collect()
    view[0] = 5
    assert buffer[0] == 5
    with pytest.raises(BufferError):
        buffer.append(1)


@MAKERS
def test_memory_that_was_lent_lives_as_long_as_its_view(make):
    buffer, region = window()
    lent = make(region, 0, 8, False)
    view = lent.view()
    part = view[4:]
    del lent, region, view
    gc.collect()
    with pytest.raises(BufferError):
        buffer.append(1)
    assert part == bytes([4, 5, 6, 7])
    del part
    gc.collect()
    buffer.append(1)


@MAKERS
def test_a_cycle_through_a_view_is_freed(make):
    class Owner:
        pass

    buffer, region = window()
    owner = Owner()
    owner.lent = make(region, 0, 8, False)
    owner.view = owner.lent.view()
    owner.part = owner.view[2:]
    owner.itself = owner
    del region
    gc.collect()
    assert owner.part == bytes(range(2, 8))
    del owner
    gc.collect()
    buffer.append(1)


@MAKERS
def test_nothing_is_leaked(make):
    _, region = window()
    for _ in range(300):  # what is kept once, is there by now
        make(region, 0, 8, True).view().release()
    gc.collect()
    before, objects = sys.getrefcount(region), len(gc.get_objects())
    for _ in range(3000):
        lent = make(region, 0, 8, True)
        with lent.view() as view, view[1:3]:
            pass
    del lent, view
    gc.collect()
    assert sys.getrefcount(region) == before
    assert len(gc.get_objects()) - objects < 100
