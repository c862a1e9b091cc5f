"""Manifest: the first pages of a region, from which an attacher learns what is in it [4].

    offset  bytes  field
         0      8  magic, written last; 0 while the region is being made
         8      4  version of this layout
        12      4  header_bytes
        16      4  manifest_bytes, whole pages
        20      4  cells_at: where the live cells start
        24      8  total_bytes of the region
        32      4  number of devices
        36      4  number of queues of all devices
        40      4  notifiers: 1 eventfd, 2 semaphore
        44      4  zero
        48      8  pid of the coordinator
        56      8  its start time (field 22 of /proc/pid/stat), which tells it from a later process of the same pid
        64     32  name of the region, padded with zeros
        96     32  zero

    each device:   0 name[32]   32 device_id   36 queues   40 config_bytes   44 restart   48 max_attempts
                  52 zero[12]                                                               64 bytes
    each queue:    0 size        4 zero         8 buffer_bytes                                16 bytes, in device order

`restart`: 0 reset, 1 resume, 2 fail. `max_attempts`: 0 if there is no limit. All little-endian. Only what was asked for
is stored, never an address: a reader plans the region anew from it, and accepts the manifest if and only if writing
that plan would give the same bytes. So no field leads anywhere by itself.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple, get_args

from vqshm.errors import InvalidState, RuleError, VersionMismatch
from vqshm.memory import atomic
from vqshm.notify.notifier import Kind
from vqshm.transport.planning import (
    DEVICE_RECORD_BYTES,
    DEVICES_AT,
    HEADER_BYTES,
    MAX_DEVICES,
    MAX_QUEUES,
    MAX_TOTAL_BYTES,
    PAGE,
    QUEUE_RECORD_BYTES,
    RESTARTS,
    DeviceSpec,
    Plan,
    QueueSpec,
    check_name,
    plan,
)

if TYPE_CHECKING:
    from vqshm.memory.atomic import Region

MAGIC: Final = int.from_bytes(b"VQSHM\x00\x1a\n", "little")
VERSION: Final = 2

_HEADER: Final = struct.Struct("<QIIIIQIIIIQQ32s32x")
_DEVICE: Final = struct.Struct("<32sIIIII12x")
_QUEUE: Final = struct.Struct("<I4xQ")
_MAGIC_BYTES: Final = 8
_KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


class _Fields(NamedTuple):
    """The header as it stands in the region."""

    magic: int
    version: int
    header_bytes: int
    manifest_bytes: int
    cells_at: int
    total_bytes: int
    devices: int
    queues: int
    notify: int
    zero: int
    pid: int
    start_time: int
    name: bytes


class Header(NamedTuple):
    """Who made the region, and how its sides wake each other."""

    name: str
    pid: int
    start_time: int
    notify: Kind


def write_manifest(region: Region, plan: Plan, *, name: str, pid: int, start_time: int, notify: Kind) -> None:
    """Write the manifest, live cells and configuration spaces all zero, and publish it with the last store.

    `region` holds at least the manifest. Raises: RuleError for a name of another shape or a region that is too small.
    """
    if region.size < plan.manifest_bytes:
        raise RuleError(f"a manifest of {plan.manifest_bytes} bytes is not for {region.size} bytes", size=region.size)
    image = _encode(plan, Header(check_name(name), pid, start_time, notify))
    atomic.store_u64(region, 0, 0)
    atomic.fence()
    region.write(_MAGIC_BYTES, image[_MAGIC_BYTES:].ljust(plan.manifest_bytes - _MAGIC_BYTES, b"\0"))
    atomic.store_u64(region, 0, MAGIC)


def read_manifest(source: Region | bytes | bytearray | memoryview, actual_size: int) -> Plan:
    """Return the plan of a region that somebody else wrote; every field is checked before it is used.

    `source` is the region or at least its manifest, mapped or copied; `actual_size` is what the kernel says the whole
    object has (fstat). Whatever `source` holds, the outcome is a plan or one of these errors.

    Raises: InvalidState while the region is only half made, VersionMismatch for everything else that is wrong.
    """
    return _read(source, actual_size)[1]


def read_header(source: Region | bytes | bytearray | memoryview, actual_size: int) -> Header:
    """Return who made the region, after the same checks. Raises InvalidState, VersionMismatch."""
    return _read(source, actual_size)[0]


def _read(source: Region | bytes | bytearray | memoryview, actual_size: int) -> tuple[Header, Plan]:
    region = source if isinstance(source, atomic.Region) else atomic.Region(bytes(source))
    if actual_size == 0:
        raise InvalidState("the region is half made: it has no size yet")
    if region.size < HEADER_BYTES or actual_size % PAGE or actual_size > MAX_TOTAL_BYTES:
        raise VersionMismatch(f"an object of {actual_size} bytes is no vqshm region", size=actual_size)
    _check_magic(atomic.load_u64(region, 0))
    # Each part is copied once, and only the copies are looked at: the bytes may change under our eyes.
    head = region.read(0, HEADER_BYTES)
    fields = _Fields(*_HEADER.unpack(head))
    if fields.version != VERSION or fields.header_bytes != HEADER_BYTES:
        raise VersionMismatch(f"layout version {fields.version}; this library reads {VERSION}", version=fields.version)
    if fields.total_bytes != actual_size:
        raise VersionMismatch(f"the region has {actual_size} bytes and claims {fields.total_bytes}", size=actual_size)
    records_bytes = fields.devices * DEVICE_RECORD_BYTES + fields.queues * QUEUE_RECORD_BYTES
    if fields.devices > MAX_DEVICES or fields.queues > MAX_QUEUES or DEVICES_AT + records_bytes > region.size:
        raise VersionMismatch(f"{fields.devices} devices and {fields.queues} queues are too many")
    records = region.read(DEVICES_AT, records_bytes)
    try:
        header = Header(check_name(_text(fields.name)), fields.pid, fields.start_time, _kind(fields.notify))
        found = plan(_specs(records, fields.devices))
    except RuleError as error:
        raise VersionMismatch(f"the manifest describes an impossible region: {error}") from error
    if _encode(found, header)[_MAGIC_BYTES:] != (head + records)[_MAGIC_BYTES:]:
        raise VersionMismatch("the manifest contradicts itself: its own plan would be written otherwise")
    return header, found


def _check_magic(magic: int) -> None:
    if magic == MAGIC:
        return
    if magic == 0:
        raise InvalidState("the region is half made: its coordinator is still at it, or ended before it was done")
    if magic == int.from_bytes(MAGIC.to_bytes(_MAGIC_BYTES, "little"), "big"):
        raise VersionMismatch("the region was made in the other byte order", magic=magic)
    raise VersionMismatch(f"no vqshm region: magic {magic:#018x} instead of {MAGIC:#018x}", magic=magic)


def _encode(plan: Plan, header: Header) -> bytes:
    """Header and records, as they stand at offset 0."""
    queues = plan.queues
    fields = _Fields(
        magic=MAGIC,
        version=VERSION,
        header_bytes=HEADER_BYTES,
        manifest_bytes=plan.manifest_bytes,
        cells_at=plan.cells_at,
        total_bytes=plan.total_bytes,
        devices=len(plan.devices),
        queues=len(queues),
        notify=1 + _KINDS.index(header.notify),
        zero=0,
        pid=header.pid,
        start_time=header.start_time,
        name=header.name.encode("ascii"),
    )
    devices = (
        _DEVICE.pack(
            device.name.encode("ascii"),
            device.device_id,
            len(device.queues),
            device.config_bytes,
            RESTARTS.index(device.restart),
            device.max_attempts or 0,
        )
        for device in plan.devices
    )
    sizes = (_QUEUE.pack(queue.spec.size, queue.spec.buffer_bytes) for queue in queues)
    return b"".join((_HEADER.pack(*fields), *devices, *sizes))


def _specs(records: bytes, count: int) -> list[DeviceSpec]:
    """The specs that the records hold; RuleError for a value none can have."""
    devices_end = count * DEVICE_RECORD_BYTES
    queues = [QueueSpec(*fields) for fields in _QUEUE.iter_unpack(records[devices_end:])]
    specs = []
    first = 0
    for name, device_id, queue_count, config_bytes, restart, attempts in _DEVICE.iter_unpack(records[:devices_end]):
        if restart >= len(RESTARTS):
            raise RuleError(f"there is no restart policy {restart}", restart=restart)
        wanted = tuple(queues[first : first + queue_count])
        specs.append(DeviceSpec(_text(name), device_id, wanted, config_bytes, RESTARTS[restart], attempts or None))
        first += queue_count
    return specs


def _text(padded: bytes) -> str:
    # Latin-1 decodes any byte; `check_name` refuses what is not one of its few characters.
    return padded.rstrip(b"\0").decode("latin-1")


def _kind(number: int) -> Kind:
    if not 1 <= number <= len(_KINDS):
        raise RuleError(f"there are no notifiers of kind {number}", notify=number)
    return _KINDS[number - 1]
