"""Guest addresses: 64-bit arithmetic that never wraps in silence."""

from __future__ import annotations

from typing import Final

from vqshm.errors import AddressOverflow

MAX_ADDRESS: Final = 0xFFFF_FFFF_FFFF_FFFF


def checked_add(address: int, offset: int) -> int:
    """`address + offset`. Raises AddressOverflow where it passes 2^64-1."""
    total = address + offset
    if not 0 <= total <= MAX_ADDRESS:
        raise AddressOverflow(f"address {address:#x} + {offset:#x} passes 2^64-1", address=address, offset=offset)
    return total


def align_up(address: int, alignment: int) -> int:
    """The first multiple of `alignment` (a power of two) at or behind `address`."""
    return (address + alignment - 1) & -alignment
