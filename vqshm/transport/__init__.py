"""Transport: how driver and device agree on a device, beside the queues: status, features, configuration, control.

What virtio calls a transport [4] is here a region that starts with a manifest, and a Unix socket to its coordinator.
"""

from vqshm.transport import features, status
from vqshm.transport.cells import DeviceCells, DeviceCounters, DriverCounters, Manifest, QueueCells
from vqshm.transport.config import ConfigSpace
from vqshm.transport.control import Channel, Credentials, Received, check_peer, peer_credentials
from vqshm.transport.manifest import Header, read_header, read_manifest, write_manifest
from vqshm.transport.messages import MAX_FDS, MESSAGES, Message, clip, validate
from vqshm.transport.planning import (
    GUEST_BASE,
    Area,
    DevicePlan,
    DeviceSpec,
    Plan,
    QueuePlan,
    QueueSpec,
    check_name,
    plan,
)
from vqshm.transport.status import DeviceStatus

__all__ = [
    "GUEST_BASE",
    "MAX_FDS",
    "MESSAGES",
    "Area",
    "Channel",
    "ConfigSpace",
    "Credentials",
    "DeviceCells",
    "DeviceCounters",
    "DevicePlan",
    "DeviceSpec",
    "DeviceStatus",
    "DriverCounters",
    "Header",
    "Manifest",
    "Message",
    "Plan",
    "QueueCells",
    "QueuePlan",
    "QueueSpec",
    "Received",
    "check_name",
    "check_peer",
    "clip",
    "features",
    "peer_credentials",
    "plan",
    "read_header",
    "read_manifest",
    "status",
    "validate",
    "write_manifest",
]
