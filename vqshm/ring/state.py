"""Saved state of a queue: plain numbers, to be kept, sent or restored; never trusted when it comes back [virtio-queue].

`QueueState` is what `Queue.state()` gives and `Queue.from_state()` validates. `as_map`/`from_map` are its dictionary
form, for msgpack or JSON; `vqshm.transport.saved` packs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

_LIMITS = {"max_size": 16, "next_avail": 16, "next_used": 16, "size": 16}  # bits; the others have 64


@dataclass(frozen=True, slots=True)
class QueueState:
    """Indices are u16 positions, sizes count descriptors, addresses are guest addresses."""

    max_size: int
    next_avail: int
    next_used: int
    event_idx_enabled: bool
    size: int
    ready: bool
    desc_table: int
    avail_ring: int
    used_ring: int

    def as_map(self) -> dict[str, int | bool]:
        """The fields by name."""
        return asdict(self)

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> QueueState:
        """The opposite of `as_map`, from an untrusted source.

        Raises ValueError for missing, unknown, mistyped or out-of-range fields. Whether the numbers make a queue is
        judged by `Queue.from_state`.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping) or set(values) != set(names):
            raise ValueError(f"a queue state has exactly the fields {', '.join(names)}")
        for name in names:
            value = values[name]
            if name in {"event_idx_enabled", "ready"}:
                if not isinstance(value, bool):
                    raise ValueError(f"queue state: {name} must be true or false, not {value!r}")
            elif isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"queue state: {name} must be a whole number, not {value!r}")
            elif value < 0 or value >> _LIMITS.get(name, 64):
                raise ValueError(f"queue state: {name} {value} is out of range")
        return cls(**values)
