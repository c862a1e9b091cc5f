"""View: looking at queues and regions, at other people's too, without disturbing anybody.

image     a private copy of a queue, and what is in flight        picture   a queue drawn as text
snapshot  a running region: who, in which state, how much         machine   what this computer offers (`vqshm doctor`)
"""

from vqshm.view.image import Chain, RingImage, read_ring
from vqshm.view.picture import draw, render
from vqshm.view.snapshot import DeviceSnapshot, Observer, Process, QueueSnapshot, RegionSnapshot, take

__all__ = [
    "Chain",
    "DeviceSnapshot",
    "Observer",
    "Process",
    "QueueSnapshot",
    "RegionSnapshot",
    "RingImage",
    "draw",
    "read_ring",
    "render",
    "take",
]
