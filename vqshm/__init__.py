"""vqshm: processes exchange buffers through genuine virtio virtqueues in POSIX shared memory.

    errors, spec                 the whole error tree; every number of the specification
    memory, ring                 guest memory, descriptor chains, both halves of a queue: no operating system
    notify, transport            wake-ups; device status, features, configuration, manifest, control channel
    host                         Coordinator, Driver, Device: real processes
    lane, message                Sender, Receiver: messages over a queue, as fast as they go
    devices, demo, view, cli     what stands on top

Names below are imported on first use, so that `import vqshm` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vqshm import core

core.install()

if TYPE_CHECKING:
    from vqshm import errors as errors
    from vqshm.host import Coordinator as Coordinator
    from vqshm.host import Device as Device
    from vqshm.host import Driver as Driver
    from vqshm.host import Handle as Handle
    from vqshm.host import launch as launch
    from vqshm.memory import GuestMemory as GuestMemory
    from vqshm.message import Fanin as Fanin
    from vqshm.message import Fanout as Fanout
    from vqshm.message import Receiver as Receiver
    from vqshm.message import Sender as Sender
    from vqshm.message import open_channel as open_channel
    from vqshm.ring import DescriptorChain as DescriptorChain
    from vqshm.ring import DeviceQueue as DeviceQueue
    from vqshm.ring import DriverQueue as DriverQueue
    from vqshm.ring import Queue as Queue
    from vqshm.ring import QueueConfig as QueueConfig
    from vqshm.ring import QueueState as QueueState
    from vqshm.ring import SplitLayout as SplitLayout
    from vqshm.ring.sync import QueueSync as QueueSync
    from vqshm.transport import DeviceSpec as DeviceSpec
    from vqshm.transport import QueueSpec as QueueSpec

__version__ = "0.1.0"

_HOME = {
    "Coordinator": "vqshm.host",
    "DescriptorChain": "vqshm.ring",
    "Device": "vqshm.host",
    "DeviceQueue": "vqshm.ring",
    "DeviceSpec": "vqshm.transport",
    "Driver": "vqshm.host",
    "DriverQueue": "vqshm.ring",
    "Fanin": "vqshm.message",
    "Fanout": "vqshm.message",
    "GuestMemory": "vqshm.memory",
    "Handle": "vqshm.host",
    "Queue": "vqshm.ring",
    "QueueConfig": "vqshm.ring",
    "QueueSpec": "vqshm.transport",
    "QueueState": "vqshm.ring",
    "QueueSync": "vqshm.ring.sync",
    "Receiver": "vqshm.message",
    "Sender": "vqshm.message",
    "SplitLayout": "vqshm.ring",
    "launch": "vqshm.host",
    "open_channel": "vqshm.message",
}

__all__ = ["__version__", "core", "errors", *_HOME]  # noqa: PLE0604 - the table above is the list


def __getattr__(name: str) -> Any:
    import importlib  # noqa: PLC0415 - kept out of a bare `import vqshm`

    if name == "errors":
        return importlib.import_module("vqshm.errors")
    if name not in _HOME:
        raise AttributeError(f"module 'vqshm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
