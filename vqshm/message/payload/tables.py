"""Tables: pyarrow's Table and RecordBatch as messages: the body is an Arrow IPC stream.

The stream is written once, straight into the message, and read where it lies. What comes is checked in full, since
Arrow itself trusts its offsets. One thing cannot be checked: a sender that changes a table while it is looked at in
place. Who does not trust the sender takes a copy (`get`).

Compressed streams are refused: a few bytes of them may claim any amount of memory.
"""

from __future__ import annotations

import functools
import importlib
import struct
from typing import Any, Final

from vqshm.errors import MissingExtra, ProtocolError
from vqshm.message.payload import frame

_SCHEMA, _DICTIONARY, _BATCH = "schema", "dictionary", "record batch"
_COMPRESSION: Final = 3  # fields of the flatbuffers of Arrow's Message.fbs, in their order
_DICTIONARY_DATA: Final = 1
_HEADER: Final = 2


def encode(table: Any) -> frame.Body:
    """A message of a Table or RecordBatch. Raises what Arrow raises for one that it cannot write."""
    pyarrow = _pyarrow()
    kind = frame.BATCH if isinstance(table, pyarrow.RecordBatch) else frame.TABLE
    measure = pyarrow.MockOutputStream()
    _write(pyarrow, measure, table)
    size = measure.size()
    head = frame.header(kind, size)
    start = len(head)

    def write(view: memoryview) -> None:
        view[:start] = head
        body = buffer = sink = None
        try:
            body = view[start:]
            buffer = pyarrow.py_buffer(body)
            sink = pyarrow.FixedSizeBufferWriter(buffer)
            _write(pyarrow, sink, table)
            if sink.tell() != size:
                raise RuntimeError(f"Arrow wrote {sink.tell()} bytes of a table of {size}")
        finally:
            del sink, buffer, body  # who looks at a traceback must not hold the memory

    return frame.Body(start + size, write)


def decode(kind: int, body: memoryview | bytes) -> Any:
    """The Table or RecordBatch over a body. Raises ProtocolError."""
    pyarrow = _pyarrow()
    failures = (
        *(pyarrow.ArrowException, pyarrow.ArrowInvalid, pyarrow.ArrowKeyError, pyarrow.ArrowTypeError),
        *(pyarrow.ArrowNotImplementedError, pyarrow.ArrowIndexError, OSError, MemoryError, ValueError),
    )
    try:
        return _read(pyarrow, kind, pyarrow.py_buffer(body))
    except failures as error:
        # Without the frames of the failure, which look at the memory of the message.
        raise ProtocolError(
            f"a table that Arrow refuses: {str(error) or type(error).__name__}"
        ) from error.with_traceback(None)


@functools.cache
def _pyarrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise MissingExtra("an Arrow table came, which needs pyarrow: pip install 'vqshm[arrow]'") from error


def _write(pyarrow: Any, sink: Any, table: Any) -> None:
    with pyarrow.ipc.new_stream(sink, table.schema, options=pyarrow.ipc.IpcWriteOptions()) as writer:
        writer.write(table)


def _read(pyarrow: Any, kind: int, buffer: Any) -> Any:
    batches = _check(pyarrow, buffer)
    with pyarrow.ipc.open_stream(buffer) as reader:
        if kind == frame.BATCH:
            if batches != 1:
                raise ValueError(f"{batches} batches where one was announced")
            result = reader.read_next_batch()
        else:
            result = reader.read_all()
    result.validate(full=True)
    _ = result.schema.names  # decodes them
    return result


def _check(pyarrow: Any, buffer: Any) -> int:
    """Look through the messages of a stream, before anything is made of them: how many batches."""
    source = pyarrow.BufferReader(buffer)
    messages = pyarrow.ipc.MessageReader.open_stream(source)
    batches = 0
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            break
        if message.type == _BATCH:
            batches += 1
        elif message.type not in (_SCHEMA, _DICTIONARY):
            raise ValueError(f"a {message.type} in a table")
        if message.type != _SCHEMA and _is_compressed(message.metadata.to_pybytes(), message.type == _DICTIONARY):
            raise ValueError("it is compressed")
    if source.tell() != buffer.size:
        raise ValueError(f"it ends after {source.tell()} of {buffer.size} bytes")
    return batches


def _is_compressed(metadata: bytes, in_dictionary: bool) -> bool:  # noqa: FBT001 - the one thing that differs
    """Whether the buffers of a batch are compressed. Arrow has checked that the metadata is a flatbuffer."""
    try:
        batch = _field(metadata, _field(metadata, 0, None), _HEADER)
        if in_dictionary and batch is not None:
            batch = _field(metadata, batch, _DICTIONARY_DATA)
        return batch is not None and _field(metadata, batch, _COMPRESSION) is not None
    except struct.error:
        raise ValueError("its metadata is cut off") from None


def _field(data: bytes, table: int | None, number: int | None) -> int | None:
    """Where the table lies that a field of another refers to; None if the field is absent."""
    place = 0
    if table is not None and number is not None:
        vtable = table - struct.unpack_from("<i", data, table)[0]
        size = struct.unpack_from("<H", data, vtable)[0]
        entry = 4 + 2 * number
        offset = struct.unpack_from("<H", data, vtable + entry)[0] if entry + 2 <= size else 0
        if not offset:
            return None
        place = table + offset
    return int(place + struct.unpack_from("<I", data, place)[0])
