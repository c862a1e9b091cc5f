"""Arrays: numpy arrays as messages: dtype and shape in the description, the items in C order as the body.

    plain dtype       its name with the byte order, "<f8", "|S5", "<M8[ns]"
    several per item  [dtype, [2, 3]]
    structured        {"names": [...], "formats": [dtype, ...], "offsets": [...], "itemsize": bytes}, "titles" too

Objects cannot travel, and no name that comes from outside is more than looked up: it has the form of a plain dtype, or
it is refused. A dtype that would not come back as it was is refused when it is sent.
"""

from __future__ import annotations

import functools
import importlib
import math
import re
from typing import TYPE_CHECKING, Any, Final

from vqshm.errors import MissingExtra, ProtocolError
from vqshm.message.payload import frame, plain

if TYPE_CHECKING:
    from collections.abc import Callable

_PLAIN: Final = re.compile(
    r"[<>|](?:[biufcV]\d{1,9}|[SU]\d{1,9}|[mM]8(?:\[\d{0,9}(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?)"
)
_MAX_DEPTH: Final = 16  # of dtypes in dtypes
_MAX_DIMS: Final = 64
_MAX_ITEM: Final = 0x7FFF_FFFF  # bytes


def encode(array: Any) -> tuple[bytes, Any] | frame.Body:
    """A message of an array, or of a numpy scalar, which comes back as an array of no dimensions.

    Raises TypeError for arrays of objects, masked arrays, and dtypes that numpy cannot spell.
    """
    numpy = _numpy()
    if type(array) is not numpy.ndarray:
        if numpy.ma.isMaskedArray(array):
            raise TypeError("a masked array is two: put its data and its mask")
        array = numpy.asarray(array)
    head = _header(array.dtype, array.shape)
    if array.flags.c_contiguous:
        return head, array.reshape(-1).view(numpy.uint8)
    start, dtype, shape = len(head), array.dtype, array.shape

    def write(view: memoryview) -> None:
        view[:start] = head
        target = None
        try:
            target = numpy.frombuffer(view, dtype, array.size, start).reshape(shape)
            numpy.copyto(target, array)
        finally:
            del target  # who looks at a traceback must not hold the memory

    return frame.Body(start + array.nbytes, write)


def decode(description: bytes, count: int) -> Callable[[memoryview], Any]:
    """What makes, of a body of `count` bytes, the array over it: read-only if the body is. Raises ProtocolError."""
    numpy = _numpy()
    dtype, shape = _parse(description)
    if dtype.names is not None:  # its owner may rename the fields: everybody gets one of his own
        dtype, shape = _parse.__wrapped__(description)
    items = math.prod(shape)
    if items * dtype.itemsize != count:
        raise ProtocolError(f"an array of {items} items of {dtype.itemsize} bytes, in a body of {count} bytes")
    if items:
        return lambda body: numpy.frombuffer(body, dtype, items).reshape(shape)
    try:
        empty = numpy.empty(shape, dtype)
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise _malformed(error) from error
    return lambda _: empty


@functools.cache
def _numpy() -> Any:
    try:
        return importlib.import_module("numpy")
    except ImportError as error:
        raise MissingExtra("an array came, which needs numpy: pip install 'vqshm[numpy]'") from error


@functools.lru_cache(maxsize=256)
def _header(dtype: Any, shape: tuple[int, ...]) -> bytes:
    """What stands before such an array."""
    if dtype.hasobject:
        raise TypeError(f"an array of objects ({dtype}) is no message: give it a dtype of numbers or fixed text")
    description = _describe(dtype)
    try:
        same = _dtype(_numpy(), description, 0) == dtype
    except ProtocolError:
        same = False
    if not same or not dtype.itemsize:
        raise TypeError(f"an array of {dtype} would not come back as it was")
    return frame.header(frame.ARRAY, math.prod(shape) * dtype.itemsize, plain.pack([description, shape]))


def _describe(dtype: Any) -> Any:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return [_describe(base), list(shape)]
    if dtype.names is None:
        return dtype.str
    fields = [dtype.fields[name] for name in dtype.names]
    described = {
        "names": list(dtype.names),
        "formats": [_describe(field[0]) for field in fields],
        "offsets": [field[1] for field in fields],
        "itemsize": dtype.itemsize,
    }
    titles = [field[2] if len(field) > 2 else None for field in fields]
    return described if titles.count(None) == len(titles) else {**described, "titles": titles}


@functools.lru_cache(maxsize=256)
def _parse(description: bytes) -> tuple[Any, tuple[int, ...]]:
    """The dtype and the shape of an array."""
    match plain.unpack(description):
        case [described, list() as shape] if len(shape) <= _MAX_DIMS and all(map(_is_count, shape)):
            dtype = _dtype(_numpy(), described, 0)
        case _:
            raise ProtocolError("an array is described by its dtype and its shape: this one is not")
    if not dtype.itemsize or dtype.subdtype is not None:
        raise ProtocolError(f"no array has items of {dtype}")
    return dtype, tuple(shape)


def _dtype(numpy: Any, described: Any, depth: int) -> Any:
    """The dtype of a description. Raises ProtocolError."""
    if depth > _MAX_DEPTH:
        raise ProtocolError(f"a dtype that is nested more than {_MAX_DEPTH} deep")
    try:
        match described:
            case str() if _PLAIN.fullmatch(described):
                dtype = numpy.dtype(described)
            case [base, [_, *_] as shape] if len(shape) <= _MAX_DIMS and all(map(_is_count, shape)):
                inner = _dtype(numpy, base, depth + 1)
                if inner.itemsize * math.prod(shape) > _MAX_ITEM:
                    raise ProtocolError(f"{math.prod(shape)} times {inner.itemsize} bytes are no item of an array")
                dtype = numpy.dtype((inner, tuple(shape)))
            case dict():
                dtype = _structure(numpy, described, depth)
            case _:
                raise ProtocolError(f"no dtype that can travel: {_short(described)}")
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise _malformed(error) from error
    if dtype.hasobject:
        raise ProtocolError("an array of objects")
    return dtype


def _structure(numpy: Any, described: dict[Any, Any], depth: int) -> Any:
    match {"titles": None, **described}:
        case {
            "names": [*names],
            "formats": [*formats],
            "offsets": [*offsets],
            "itemsize": size,
            "titles": titles,
            **others,
        } if not others and all(type(name) is str for name in names) and all(map(_is_count, [*offsets, size])):
            spelled = {
                "names": names,
                "formats": [_dtype(numpy, format_, depth + 1) for format_ in formats],
                "offsets": offsets,
                "itemsize": size,
            }
            if titles is not None:
                if type(titles) is not list or not all(title is None or type(title) is str for title in titles):
                    raise ProtocolError("the titles of a dtype are text")
                spelled["titles"] = titles
            return numpy.dtype(spelled)
    raise ProtocolError("a structured dtype is described by names, formats, offsets and itemsize: this one is not")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _malformed(error: Exception) -> ProtocolError:
    return ProtocolError(f"an array that numpy refuses: {str(error) or type(error).__name__}")


def _short(value: object) -> str:
    return repr(value)[:80] if isinstance(value, str) else f"a {type(value).__name__}"
