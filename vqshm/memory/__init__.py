"""Memory: guest memory with holes, the ordering seam, and the driver's buffer pool. No operating system in here."""

from vqshm import core
from vqshm.memory.address import MAX_ADDRESS, align_up, checked_add
from vqshm.memory.atomic import Region
from vqshm.memory.guest import GuestMemory, GuestRegion
from vqshm.memory.pool import BufferPool

__all__ = ["MAX_ADDRESS", "BufferPool", "GuestMemory", "GuestRegion", "Region", "align_up", "checked_add"]

core.announce()
