"""Feature bits: what a device may offer, what a driver may accept, and what the device must check [2.2, 6].

    device offers  ──check_offer──▶  driver: negotiate(offered, wanted, required)  ──check_accepted──▶  FEATURES_OK

Rules
- VIRTIO_F_VERSION_1 must be offered and must be accepted: there are no legacy devices here.
- Of the bits for rings and negotiation, those in `SUPPORTED` work here; no other is offered or accepted.
- A feature that requires another one goes nowhere without it. Which requires which is the device type's to say:
  `requires` maps a bit number to the bit numbers it needs.
- A driver ignores what it does not understand and never fails because of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from vqshm import spec
from vqshm.errors import NegotiationError

Requires: TypeAlias = Mapping[int, tuple[int, ...]]

SUPPORTED: Final = spec.mask(spec.VIRTIO_F_INDIRECT_DESC, spec.VIRTIO_F_EVENT_IDX, spec.VIRTIO_F_VERSION_1)
VERSION_1: Final = spec.mask(spec.VIRTIO_F_VERSION_1)
MAX_BITS: Final = 64  # as many as the manifest and the control channel carry; the specification goes on to 127
DEVICE_BITS: Final = spec.mask(
    *(bit for bit in spec.DEVICE_FEATURE_BITS if bit < MAX_BITS and bit != spec.VIRTIO_F_ADMIN_VQ)
)

_NAMES: Final = {value: name for name, value in vars(spec).items() if name.startswith("VIRTIO_F_")}
_NONE: Final[Requires] = {}


def names(bits: int) -> tuple[str, ...]:
    """Return the names of the set bits, lowest first; "device bit 5" and "reserved bit 44" for those without one."""
    return tuple(_name(bit) for bit in range(bits.bit_length()) if bits >> bit & 1)


def check_offer(offered: int, requires: Requires = _NONE) -> None:
    """Raise NegotiationError for a set of bits that no device may offer here."""
    _check_set("offered", offered, requires)


def negotiate(offered: int, wanted: int, required: int = 0, requires: Requires = _NONE) -> int:
    """Return the bits that a driver accepts: offered, wanted or required, understood, and lacking nothing they require.

    Raises: NegotiationError where VIRTIO_F_VERSION_1 or a required feature cannot be had; the driver then sets FAILED.
    """
    required |= VERSION_1
    accepted = offered & (wanted | required) & (SUPPORTED | DEVICE_BITS)
    while unmet := _unmet(accepted, requires):
        for bit, _ in unmet:
            accepted &= ~(1 << bit)
    missing = required & ~accepted
    if missing:
        raise NegotiationError(
            f"the driver cannot do without {_join(missing)}; the device offers {_join(offered)}",
            offered=offered,
            missing=missing,
        )
    return accepted


def check_accepted(offered: int, accepted: int, requires: Requires = _NONE) -> None:
    """Raise NegotiationError for bits that a driver must not accept; the device then leaves FEATURES_OK clear."""
    if accepted & ~offered:
        raise NegotiationError(f"{_join(accepted & ~offered)} was accepted but not offered", accepted=accepted)
    _check_set("accepted", accepted, requires)


def _check_set(what: str, bits: int, requires: Requires) -> None:
    unsupported = bits & ~(SUPPORTED | DEVICE_BITS)
    if unsupported:
        raise NegotiationError(f"{_join(unsupported)} cannot be {what}: not supported here", bits=bits)
    if not bits & VERSION_1:
        raise NegotiationError(f"VIRTIO_F_VERSION_1 must be {what}", bits=bits)
    for bit, lacking in _unmet(bits, requires):
        raise NegotiationError(f"{_name(bit)} is {what} without {_join(lacking)}, which it requires", bits=bits)


def _unmet(bits: int, requires: Requires) -> list[tuple[int, int]]:
    """(bit number, mask of what it lacks) for each set bit that lacks something."""
    pairs = ((bit, spec.mask(*needed) & ~bits) for bit, needed in requires.items() if bits >> bit & 1)
    return [(bit, lacking) for bit, lacking in pairs if lacking]


def _name(bit: int) -> str:
    return _NAMES.get(bit) or f"{'device' if bit in spec.DEVICE_FEATURE_BITS else 'reserved'} bit {bit}"


def _join(bits: int) -> str:
    return ", ".join(names(bits)) or "nothing"
