"""Notify: waking the other side up, by eventfd or POSIX semaphore, and how to wait for being woken.

A notification carries no data [2.3]. It only says "look again": one too many does no harm, and several may become one.
"""

from vqshm.notify.eventfd import EventFd
from vqshm.notify.notifier import Notifier
from vqshm.notify.semaphore import Semaphore, unlink_semaphore
from vqshm.notify.wait import Adaptive, Block, Deadline, Spin, WaitStrategy, Yield, park_on

__all__ = [
    "Adaptive",
    "Block",
    "Deadline",
    "EventFd",
    "Notifier",
    "Semaphore",
    "Spin",
    "WaitStrategy",
    "Yield",
    "park_on",
    "unlink_semaphore",
]
