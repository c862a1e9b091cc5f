"""Rings: the split virtqueue, both halves, and everything the device does with a chain. No operating system in here.

`QueueSync` is imported by name from `vqshm.ring.sync`: it alone needs threads.
"""

from vqshm.ring.chain import DescriptorChain, Reader, Writer
from vqshm.ring.descriptor import Descriptor, PackedDescriptor, VirtqUsedElem
from vqshm.ring.inflight import Inflight
from vqshm.ring.layout import SplitLayout
from vqshm.ring.queue import Queue, QueueConfig
from vqshm.ring.split_device import AvailIter, DeviceQueue
from vqshm.ring.split_driver import DriverQueue
from vqshm.ring.state import QueueState
from vqshm.ring.suppress import need_event
from vqshm.ring.walk import Walk

__all__ = [
    "AvailIter",
    "Descriptor",
    "DescriptorChain",
    "DeviceQueue",
    "DriverQueue",
    "Inflight",
    "PackedDescriptor",
    "Queue",
    "QueueConfig",
    "QueueState",
    "Reader",
    "SplitLayout",
    "VirtqUsedElem",
    "Walk",
    "Writer",
    "need_event",
]
