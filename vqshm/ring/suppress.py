"""Notification suppression: the one comparison that decides whether the other side wants to be woken [2.7.10, 2.7.7].

All three values are positions on a circle of 65536. The side that sleeps writes `event`, the position whose passing
shall wake it; the side that works has moved its index from `old` to `new`, and must wake the sleeper if `event` was
passed:

        old            event          new
    ─────┼───────────────┼─────────────┼──────▶        wake: event lies in [old, new)

Comparing for equality, or without wrapping, loses a wake-up as soon as several buffers are published at once.
"""

from __future__ import annotations


def need_event(event: int, new: int, old: int) -> bool:
    """Whether moving an index from `old` to `new` passed `event` (all u16)."""
    return ((new - event - 1) & 0xFFFF) < ((new - old) & 0xFFFF)
