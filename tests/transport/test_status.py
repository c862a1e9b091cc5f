"""Every cell of the status table is walked: permitted steps are taken, forbidden ones are refused with their reason."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqshm import spec
from vqshm.errors import NegotiationError
from vqshm.transport.status import (
    FORBIDDEN,
    TRANSITIONS,
    DeviceStatus,
    Event,
    State,
    describe,
    diagram,
    state_of,
    table,
)

A, D, OK, F = spec.STATUS_ACKNOWLEDGE, spec.STATUS_DRIVER, spec.STATUS_DRIVER_OK, spec.STATUS_FEATURES_OK
NEEDS_RESET, FAILED, SUSPEND = spec.STATUS_DEVICE_NEEDS_RESET, spec.STATUS_FAILED, spec.STATUS_SUSPEND

STEPS = {
    State.RESET: 0,
    State.ACKNOWLEDGED: A,
    State.DRIVER: A | D,
    State.FEATURES_OK: A | D | F,
    State.LIVE: A | D | F | OK,
}
VALUES = {
    **{state: [value] for state, value in STEPS.items()},
    State.NEEDS_RESET: [value | NEEDS_RESET for value in STEPS.values()],
    State.FAILED: [value | FAILED | error for value in STEPS.values() for error in (0, NEEDS_RESET)],
}
BITS = {Event.ACKNOWLEDGE: A, Event.DRIVER: D, Event.FEATURES_OK: F, Event.DRIVER_OK: OK, Event.FAILED: FAILED}
CELLS = [(state, event, value) for state, event in itertools.product(State, Event) for value in VALUES[state]]


def happen(register: DeviceStatus, event: Event) -> None:
    if event is Event.RESET:
        register.write(0)
    elif event is Event.NEEDS_RESET:
        register.needs_reset()
    else:
        register.write(register.value | BITS[event])


def test_the_two_tables_divide_all_cells_between_them():
    every_cell = set(itertools.product(State, Event))
    assert set(TRANSITIONS) | set(FORBIDDEN) == every_cell
    assert not set(TRANSITIONS) & set(FORBIDDEN)
    assert all(step.why and step.who in ("driver", "device") for step in TRANSITIONS.values())
    assert all(FORBIDDEN.values())


@pytest.mark.parametrize(("state", "event", "value"), [cell for cell in CELLS if cell[:2] in TRANSITIONS])
def test_a_permitted_step_leads_where_the_table_says(state, event, value):
    register = DeviceStatus(value)
    assert register.state is state
    happen(register, event)
    assert register.state is TRANSITIONS[state, event].to


@pytest.mark.parametrize(("state", "event", "value"), [cell for cell in CELLS if cell[:2] in FORBIDDEN])
def test_a_forbidden_step_is_refused_with_its_reason_and_changes_nothing(state, event, value):
    register = DeviceStatus(value)
    if value & BITS[event]:
        happen(register, event)  # writing a bit that is set is no step at all
    else:
        with pytest.raises(NegotiationError, match=FORBIDDEN[state, event]):
            happen(register, event)
    assert register.value == value


def test_a_driver_may_take_the_steps_one_by_one():
    register = DeviceStatus()
    for value in (A, A | D, A | D | F, A | D | F | OK):
        register.write(value)
        assert register.value == value


def test_a_driver_may_take_the_first_two_steps_in_one_write():
    register = DeviceStatus()
    register.write(A | D)
    assert register.state is State.DRIVER


def test_features_ok_is_read_back_before_driver_ok():
    register = DeviceStatus(A | D)
    with pytest.raises(NegotiationError, match="read back"):
        register.write(A | D | F | OK)
    assert register.value == A | D


@pytest.mark.parametrize("cleared", [A, D, F, OK, A | D])
def test_a_driver_never_clears_a_bit(cleared):
    register = DeviceStatus(A | D | F | OK)
    with pytest.raises(NegotiationError, match="clear"):
        register.write((A | D | F | OK) & ~cleared)
    assert register.state is State.LIVE


def test_failed_is_cleared_by_reset_alone():
    register = DeviceStatus(A | D)
    register.write(A | D | FAILED)
    with pytest.raises(NegotiationError, match="FAILED"):
        register.write(A | D)
    register.write(0)
    assert register.value == 0


def test_a_write_that_does_not_know_of_needs_reset_leaves_it_set():
    register = DeviceStatus(A | D)
    register.needs_reset()
    register.write(A | D)
    assert register.value == A | D | NEEDS_RESET


def test_needs_reset_is_not_the_drivers_to_set():
    register = DeviceStatus(A | D)
    with pytest.raises(NegotiationError, match="DEVICE_NEEDS_RESET"):
        register.write(A | D | NEEDS_RESET)


@pytest.mark.parametrize(("value", "owed"), [(0, False), (A | D | F, False), (A | D | F | OK, True)])
def test_a_live_device_owes_the_driver_a_notification_of_needs_reset(value, owed):
    assert DeviceStatus(value).needs_reset() is owed


@pytest.mark.parametrize("bits", [SUSPEND, 32, 256, -1])
def test_bits_without_a_meaning_here_are_refused(bits):
    register = DeviceStatus(A)
    with pytest.raises(NegotiationError):
        register.write(A | bits)
    assert register.value == A


@given(st.integers(0, 255))
def test_only_values_that_a_sequence_leads_to_have_a_state(value):
    reachable = {value for values in VALUES.values() for value in values}
    if value in reachable:
        assert value in VALUES[state_of(value)]
        assert DeviceStatus(value).value == value
    else:
        with pytest.raises(NegotiationError):
            DeviceStatus(value)


@given(st.lists(st.one_of(st.integers(0, 255), st.none())))
def test_no_sequence_of_writes_leads_out_of_the_table(writes):
    register = DeviceStatus()
    for value in writes:
        before = register.value
        if value is None:
            register.needs_reset()
            continue
        try:
            register.write(value)
        except NegotiationError:
            assert register.value == before
        assert state_of(register.value) in State


def test_a_value_is_described_by_its_names_in_the_order_of_a_life():
    assert describe(0) == "RESET"
    assert describe(A | D) == "ACKNOWLEDGE|DRIVER"
    assert describe(255) == "ACKNOWLEDGE|DRIVER|FEATURES_OK|DRIVER_OK|SUSPEND|DEVICE_NEEDS_RESET|FAILED|0x20"


def test_the_drawings_show_every_step_and_every_cell():
    drawing = diagram()
    for (state, event), step in TRANSITIONS.items():
        if state is not step.to:
            assert f"{state} --> {step.to}: {step.who}, {event}" in drawing
    lines = table().splitlines()
    assert len(lines) == len(State) * len(Event)
    assert sum("forbidden" in line for line in lines) == len(FORBIDDEN)
