"""Device status: what driver and device may do next, as a table; and the register that obeys it [2.1, 3.1.1].

    value                                            state
    0                                                reset
    ACKNOWLEDGE                                      acknowledged
    ACKNOWLEDGE|DRIVER                               driver        (the driver reads and writes feature bits here)
    ACKNOWLEDGE|DRIVER|FEATURES_OK                   features_ok   (configuration and queues are set up here)
    ACKNOWLEDGE|DRIVER|FEATURES_OK|DRIVER_OK         live          (buffers flow)
    any of them with DEVICE_NEEDS_RESET              needs_reset
    any of them with FAILED                          failed        (with or without DEVICE_NEEDS_RESET)

Rules
- The driver sets bits, one step after the other, and never clears one: only writing 0 does, which is a reset.
- DEVICE_NEEDS_RESET is the device's. A write that does not mention it leaves it alone, because the driver may not have
  seen it yet; a write that sets it is refused.
- FEATURES_OK and DRIVER_OK never come in one write: the driver must read back whether FEATURES_OK was accepted.
- SUSPEND belongs to VIRTIO_F_SUSPEND, which is not offered here.

Every pair of a state and an event is in exactly one of the two tables, with who does it or why nobody may.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from vqshm import spec
from vqshm.errors import NegotiationError


class State(StrEnum):
    """Where a device is in its life."""

    RESET = "reset"
    ACKNOWLEDGED = "acknowledged"
    DRIVER = "driver"
    FEATURES_OK = "features_ok"
    LIVE = "live"
    NEEDS_RESET = "needs_reset"
    FAILED = "failed"


class Event(StrEnum):
    """What happens to the status; all but the last are writes of the driver."""

    RESET = "write 0"
    ACKNOWLEDGE = "set ACKNOWLEDGE"
    DRIVER = "set DRIVER"
    FEATURES_OK = "set FEATURES_OK"
    DRIVER_OK = "set DRIVER_OK"
    FAILED = "set FAILED"
    NEEDS_RESET = "set DEVICE_NEEDS_RESET"


class Step(NamedTuple):
    """One permitted transition."""

    to: State
    who: str
    why: str


_RESET: Final = Step(State.RESET, "driver", "a reset is possible at any time and starts over")
_FAILED: Final = Step(State.FAILED, "driver", "the driver gives up on the device")
_NEEDS_RESET: Final = Step(State.NEEDS_RESET, "device", "an error from which only a reset leads back")

TRANSITIONS: Final[dict[tuple[State, Event], Step]] = {
    (State.RESET, Event.ACKNOWLEDGE): Step(State.ACKNOWLEDGED, "driver", "the device was noticed"),
    (State.ACKNOWLEDGED, Event.DRIVER): Step(State.DRIVER, "driver", "there is a driver for it"),
    (State.DRIVER, Event.FEATURES_OK): Step(State.FEATURES_OK, "driver", "the feature bits are written and final"),
    (State.FEATURES_OK, Event.DRIVER_OK): Step(State.LIVE, "driver", "the queues are set up"),
    **{(state, Event.RESET): _RESET for state in State},
    **{(state, Event.FAILED): _FAILED for state in State},
    **{(state, Event.NEEDS_RESET): _NEEDS_RESET for state in State if state is not State.FAILED},
    (State.FAILED, Event.NEEDS_RESET): Step(State.FAILED, "device", "the bit is set, but the driver gave up before"),
}

_TWICE: Final = "the bit is set already, and only a reset clears it"
_BROKEN: Final = "the device is in an error state: reset it first"
_GIVEN_UP: Final = "the driver set FAILED and must reset the device before it starts again"

FORBIDDEN: Final[dict[tuple[State, Event], str]] = {
    (State.RESET, Event.DRIVER): "ACKNOWLEDGE comes first",
    (State.RESET, Event.FEATURES_OK): "ACKNOWLEDGE and DRIVER come first",
    (State.RESET, Event.DRIVER_OK): "ACKNOWLEDGE, DRIVER and FEATURES_OK come first",
    (State.ACKNOWLEDGED, Event.ACKNOWLEDGE): _TWICE,
    (State.ACKNOWLEDGED, Event.FEATURES_OK): "DRIVER comes first: without a driver nobody knows the features",
    (State.ACKNOWLEDGED, Event.DRIVER_OK): "DRIVER and FEATURES_OK come first",
    (State.DRIVER, Event.ACKNOWLEDGE): _TWICE,
    (State.DRIVER, Event.DRIVER): _TWICE,
    (State.DRIVER, Event.DRIVER_OK): "FEATURES_OK comes first: a live device needs agreed features",
    (State.FEATURES_OK, Event.ACKNOWLEDGE): _TWICE,
    (State.FEATURES_OK, Event.DRIVER): _TWICE,
    (State.FEATURES_OK, Event.FEATURES_OK): _TWICE,
    (State.LIVE, Event.ACKNOWLEDGE): _TWICE,
    (State.LIVE, Event.DRIVER): _TWICE,
    (State.LIVE, Event.FEATURES_OK): _TWICE,
    (State.LIVE, Event.DRIVER_OK): _TWICE,
    (State.NEEDS_RESET, Event.ACKNOWLEDGE): _BROKEN,
    (State.NEEDS_RESET, Event.DRIVER): _BROKEN,
    (State.NEEDS_RESET, Event.FEATURES_OK): _BROKEN,
    (State.NEEDS_RESET, Event.DRIVER_OK): _BROKEN,
    (State.FAILED, Event.ACKNOWLEDGE): _GIVEN_UP,
    (State.FAILED, Event.DRIVER): _GIVEN_UP,
    (State.FAILED, Event.FEATURES_OK): _GIVEN_UP,
    (State.FAILED, Event.DRIVER_OK): _GIVEN_UP,
}

# In the order in which a driver sets them.
_DRIVER_BITS: Final = {
    spec.STATUS_ACKNOWLEDGE: Event.ACKNOWLEDGE,
    spec.STATUS_DRIVER: Event.DRIVER,
    spec.STATUS_FEATURES_OK: Event.FEATURES_OK,
    spec.STATUS_DRIVER_OK: Event.DRIVER_OK,
    spec.STATUS_FAILED: Event.FAILED,
}
_NAMES: Final = {
    spec.STATUS_ACKNOWLEDGE: "ACKNOWLEDGE",
    spec.STATUS_DRIVER: "DRIVER",
    spec.STATUS_FEATURES_OK: "FEATURES_OK",
    spec.STATUS_DRIVER_OK: "DRIVER_OK",
    spec.STATUS_SUSPEND: "SUSPEND",
    spec.STATUS_DEVICE_NEEDS_RESET: "DEVICE_NEEDS_RESET",
    spec.STATUS_FAILED: "FAILED",
}
_SET_BY_STEPS: Final = {
    0: State.RESET,
    spec.STATUS_ACKNOWLEDGE: State.ACKNOWLEDGED,
    spec.STATUS_ACKNOWLEDGE | spec.STATUS_DRIVER: State.DRIVER,
    spec.STATUS_ACKNOWLEDGE | spec.STATUS_DRIVER | spec.STATUS_FEATURES_OK: State.FEATURES_OK,
    spec.STATUS_ACKNOWLEDGE | spec.STATUS_DRIVER | spec.STATUS_FEATURES_OK | spec.STATUS_DRIVER_OK: State.LIVE,
}


def describe(value: int) -> str:
    """Return the bits by name, in the order of a life: "ACKNOWLEDGE|DRIVER"; "RESET" for 0."""
    named = [name for bit, name in _NAMES.items() if value & bit]
    unknown = value & ~sum(_NAMES)
    return "|".join([*named, *([f"{unknown:#x}"] if unknown else [])]) or "RESET"


def state_of(value: int) -> State:
    """Return the state that a status value stands for. Raises NegotiationError for one that no sequence leads to."""
    steps = value & ~(spec.STATUS_DEVICE_NEEDS_RESET | spec.STATUS_FAILED)
    if steps not in _SET_BY_STEPS:
        raise NegotiationError(f"device status {describe(value)} ({value:#x}) is no state of a device", value=value)
    if value & spec.STATUS_FAILED:
        return State.FAILED
    return State.NEEDS_RESET if value & spec.STATUS_DEVICE_NEEDS_RESET else _SET_BY_STEPS[steps]


class DeviceStatus:
    """The status register of one device."""

    def __init__(self, value: int = spec.STATUS_RESET) -> None:
        """Hold `value`, as read from elsewhere. Raises NegotiationError if no sequence of steps leads to it."""
        state_of(value)
        self._value = value

    @property
    def value(self) -> int:
        """The bits, as either side reads them."""
        return self._value

    @property
    def state(self) -> State:
        """What the bits stand for."""
        return state_of(self._value)

    def write(self, value: int) -> None:
        """Let the driver write the register; 0 resets. What it does not change it may repeat.

        Raises: NegotiationError, which names the bits and the reason; the register keeps its value then.
        """
        if value == spec.STATUS_RESET:
            self.reset()
            return
        self._refuse_foreign_bits(value)
        reached = self._value
        for bit, event in _DRIVER_BITS.items():
            if value & ~self._value & bit:
                transition(state_of(reached), event)
                reached |= bit
        self._value = reached

    def needs_reset(self) -> bool:
        """Set DEVICE_NEEDS_RESET. True: the device owes the driver a configuration change notification [2.1.2]."""
        self._value |= spec.STATUS_DEVICE_NEEDS_RESET
        return bool(self._value & spec.STATUS_DRIVER_OK)

    def reset(self) -> None:
        """Go back to 0. To be called when the device has let go of its queues: 0 tells the driver so [2.4]."""
        self._value = spec.STATUS_RESET

    def _refuse_foreign_bits(self, value: int) -> None:
        unknown = value & ~sum(_NAMES)
        if unknown:
            raise NegotiationError(f"device status has no bits {unknown:#x}", value=value)
        if value & spec.STATUS_SUSPEND:
            raise NegotiationError("SUSPEND needs VIRTIO_F_SUSPEND, which is not offered", value=value)
        cleared = self._value & ~value & ~spec.STATUS_DEVICE_NEEDS_RESET
        if cleared:
            raise NegotiationError(f"the driver must not clear {describe(cleared)}; write 0 to reset", value=value)
        if value & ~self._value & spec.STATUS_DEVICE_NEEDS_RESET:
            raise NegotiationError("DEVICE_NEEDS_RESET is the device's to set, not the driver's", value=value)
        together = spec.STATUS_FEATURES_OK | spec.STATUS_DRIVER_OK
        if value & ~self._value & together == together:
            raise NegotiationError("FEATURES_OK must be read back before DRIVER_OK is set: two writes", value=value)

    def __repr__(self) -> str:
        return f"<DeviceStatus {describe(self._value)}>"


def transition(state: State, event: Event) -> Step:
    """Return the transition. Raises NegotiationError with the reason where there is none."""
    step = TRANSITIONS.get((state, event))
    if step is None:
        raise NegotiationError(f"cannot {event} in state {state}: {FORBIDDEN[state, event]}", state=state, event=event)
    return step


def diagram() -> str:
    """Draw the life cycle as a mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> reset"]
    for (state, event), step in TRANSITIONS.items():
        if state is not step.to:
            lines.append(f"    {state} --> {step.to}: {step.who}, {event}")
    return "\n".join(lines)


def table() -> str:
    """Write both tables as text: one line for each pair of a state and an event."""
    lines = []
    for state in State:
        for event in Event:
            step = TRANSITIONS.get((state, event))
            outcome = f"-> {step.to} ({step.who}: {step.why})" if step else f"forbidden: {FORBIDDEN[state, event]}"
            lines.append(f"{state:<13} {event:<23} {outcome}")
    return "\n".join(lines)
