"""No order of steps, and no delay of stores, breaks the real rings and lanes; every mutant of them breaks (C01, H04).

Every order is tried, to the end: nothing is sampled. What bounds an exploration is the scenario: two or three messages
in a ring of two or four. `tools/explore.py` runs larger ones.
"""

from __future__ import annotations

import pytest
from vqshm_death_scenarios import resumption, succession
from vqshm_explorer import Explorer, Scenario, Violation
from vqshm_fan_scenarios import SLOW, fan_in, fan_out
from vqshm_memory_models import MODELS
from vqshm_mutants import MUTANTS, Mutant
from vqshm_scenarios import BASE, exchange, lane

from vqshm import core

pytestmark = [
    pytest.mark.fault("H04"),
    pytest.mark.skipif(
        core.kind() != "interpreted", reason="the interpreted source is explored: runs under VQSHM_PURE=1"
    ),
]


def explore(scenario, model="tso", **limits):
    return Explorer(scenario, MODELS[model](), **limits).run()


def slow(*arguments):
    return pytest.param(*arguments, marks=pytest.mark.long)


# -- the real source ---------------------------------------------------------------------------------------------------


@pytest.mark.fault("C01")
@pytest.mark.parametrize(
    "scenario",
    [
        exchange(2),
        exchange(3, batch=2, lazy=True),
        slow(exchange(3, batch=2)),
        slow(exchange(2, event_idx=False)),
        exchange(2, pairs=True),
        exchange(2, 4, pairs=True, batch=2, lazy=True),
        exchange(2, batch=2, after=2),
        slow(exchange(3, batch=2, after=2)),
        lane(2),
        lane(2, bed=False),
        lane(3, 4, held=4, room=4, many=True),
        slow(lane(3, many=True)),
        slow(lane(2, event_idx=False)),
        slow(lane(2, held=1, room=1)),
    ],
    ids=str,
)
def test_no_order_loses_a_wake_up_or_a_message(scenario):
    assert explore(scenario).orders > 1e9


@pytest.mark.parametrize(
    "scenario",
    [
        exchange(2, start=0xFFFF),
        exchange(3, batch=2, lazy=True, start=0xFFFF),
        exchange(2, batch=2, start=0xFFFE, after=2),
        lane(2, start=0xFFFF, many=True),
        slow(lane(2, start=0xFFFF)),
    ],
    ids=str,
)
def test_nor_where_positions_wrap(scenario):
    assert explore(scenario).orders > 1e9


@pytest.mark.parametrize(
    "scenario", [slow(exchange(2, spurious=1)), exchange(2, batch=2, lazy=True, spurious=2)], ids=str
)
def test_nor_with_wake_ups_for_nothing(scenario):
    assert explore(scenario).orders > 1e9


@pytest.mark.fault("C01", "H03")
@pytest.mark.parametrize(
    "scenario",
    [
        exchange(1),
        exchange(1, event_idx=False),
        exchange(2, batch=2, lazy=True),
        exchange(1, pairs=True),
        lane(1),
        slow(exchange(2)),
        slow(lane(2, 4, held=4, room=2, many=True)),
    ],
    ids=str,
)
def test_nor_on_a_processor_that_orders_no_more_than_c11_promises(scenario):
    assert explore(scenario, "c11").orders > 1000


@pytest.mark.parametrize(
    ("scenario", "preemptions"),
    [
        (fan_in(1), 1),
        (fan_out(1, mode="broadcast"), 1),
        (fan_out(2), 1),
        (fan_out(2, step=SLOW), 1),
        (fan_out(2, event_idx=False), 1),
        slow(fan_in(2), 1),
        slow(fan_in(1), 2),
        slow(fan_out(2, mode="broadcast"), 1),
        slow(fan_out(3), 1),
    ],
    ids=str,
)
def test_those_who_wait_for_several_lanes_miss_none_of_them(scenario, preemptions):
    """Three sides; stores are seen at once here, as the ring's own fences are tried above."""
    assert explore(scenario, "sc", preemptions=preemptions).orders > 100


@pytest.mark.parametrize("mode", ["share", "broadcast"])
def test_a_fan_that_goes_by_the_clock_is_explored_to_the_same_end_each_time(mode):
    first, second = (explore(fan_out(1, mode=mode), "sc", preemptions=1) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("scenario", "model"),
    [
        (resumption(1), "tso"),
        (resumption(2, 4, batch=2, lazy=True, together=True), "sc"),
        slow(resumption(2), "sc"),
        slow(resumption(2, 4, batch=2, lazy=True, together=True), "tso"),
        slow(resumption(2, 2, kills=2), "sc"),
    ],
    ids=str,
)
def test_a_device_killed_at_any_step_loses_and_doubles_nothing(scenario, model):
    assert explore(scenario, model).orders > 1e9


@pytest.mark.fault("D02")
@pytest.mark.parametrize(
    ("scenario", "model", "preemptions"),
    [
        (succession(1), "tso", None),
        (succession(1, limit=1), "sc", None),
        (succession(1, kills=2), "sc", None),
        (succession(2), "sc", 1),
        (succession(2, many=True, limit=1), "sc", 1),
        slow(succession(2, room=1), "sc", 1),
        slow(succession(2, kills=2, limit=1), "sc", 1),
        slow(succession(2, kills=2, many=True, limit=2), "sc", 1),
    ],
    ids=str,
)
def test_a_receiver_killed_at_any_step_loses_nothing_and_nothing_that_was_done_comes_again(
    scenario, model, preemptions
):
    assert explore(scenario, model, preemptions=preemptions).orders > 1e3


# -- mutants -----------------------------------------------------------------------------------------------------------


@pytest.mark.fault("C02", "C03")
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_every_mutant_dies(mutant):
    with mutant.planted(), pytest.raises(Violation) as caught:
        explore(mutant.scenario(), mutant.model, **mutant.limits)
    assert caught.value.trace


def test_a_mutant_is_pulled_out_again_and_one_that_does_not_fit_is_refused():
    before = Explorer.run
    with Mutant("none", Explorer, "run", (("scenario = self._scenario", "return 7"),), exchange).planted():
        assert Explorer.run is not before
    assert Explorer.run is before
    with pytest.raises(LookupError), Mutant("none", Explorer, "run", (("no such line", ""),), exchange).planted():
        pass


# -- the explorer itself -----------------------------------------------------------------------------------------------

X, Y = BASE, BASE + 8


def two(one, other, **options):
    return Scenario("two", BASE, bytes(16), {"one": one, "other": other}, **options)


def word(world, address):
    return world.memory.window(address, 8, 8)


def seen_in_all_orders(one, other, model):
    """What the two sides may have returned together."""
    seen = set()
    explore(two(one, other, check=lambda values, _image: seen.add((values["one"], values["other"]))), model)
    return seen


def crossing(mine, its, *, fence):
    """Store here, look there: the pair that every wake-up rests on."""
    from vqshm.memory import atomic

    def side(world):
        atomic.store_u16(word(world, mine), 0, 1)
        if fence:
            atomic.fence()
        return atomic.load_u16(word(world, its), 0)

    return side


@pytest.mark.fault("H03")
@pytest.mark.parametrize(
    ("model", "fence", "overlooked"),
    [("sc", False, False), ("tso", False, True), ("tso", True, False), ("c11", False, True), ("c11", True, False)],
)
def test_two_that_store_and_then_look_overlook_each_other_only_without_fences(model, fence, overlooked):
    seen = seen_in_all_orders(crossing(X, Y, fence=fence), crossing(Y, X, fence=fence), model)
    assert ((0, 0) in seen) is overlooked
    assert seen >= {(0, 1), (1, 0), (1, 1)}


def passing(publish, look):
    """A message, and the flag that says that it is there."""
    from vqshm.memory import atomic

    def one(world):
        atomic.put_u16(word(world, X), 0, 7)
        getattr(atomic, publish)(word(world, Y), 0, 1)

    def other(world):
        return getattr(atomic, look)(word(world, Y), 0), atomic.get_u16(word(world, X), 0)

    return one, other


@pytest.mark.fault("H03")
@pytest.mark.parametrize(
    ("model", "publish", "look", "torn"),
    [
        ("tso", "put_u16", "get_u16", False),  # which is why a mutant may live on x86
        ("c11", "store_u16", "load_u16", False),
        ("c11", "put_u16", "load_u16", True),
        ("c11", "store_u16", "get_u16", True),
    ],
)
def test_a_message_is_seen_before_its_flag_only_without_release_and_acquire(model, publish, look, torn):
    seen = {other for _, other in seen_in_all_orders(*passing(publish, look), model)}
    assert ((1, 0) in seen) is torn
    assert seen >= {(0, 0), (0, 7), (1, 7)}


@pytest.mark.parametrize("model", MODELS)
def test_a_side_sees_its_own_stores_at_once(model):
    from vqshm.memory import atomic

    def one(world):
        atomic.store_u32(word(world, X), 0, 0x01020304)
        assert atomic.load_u32(word(world, X), 0) == 0x01020304

    assert explore(two(one, lambda _world: None), model).states


def test_sleepers_whom_nobody_wakes_are_named():
    with pytest.raises(Violation, match="one sleeps for ever, waiting for a; other sleeps for ever, waiting for b"):
        explore(two(lambda world: world.wait("a"), lambda world: world.wait("b")))


def test_a_side_that_spins_is_named():
    def spins(world):
        while not world.read(X, 1)[0]:
            pass

    with pytest.raises(Violation, match="one does not come to an end"):
        explore(two(spins, lambda _world: None), patience=50)


def test_a_failing_side_is_named_with_the_steps_that_lead_there():
    def one(world):
        assert world.read(X, 1) == b"\0", "seen"

    with pytest.raises(Violation, match="one raised AssertionError") as caught:
        explore(two(one, lambda world: world.write(X, b"\1")))
    assert caught.value.trace == ["other: its store of 01 to +0x0 becomes visible", "one: loads 01 from +0x0"]


@pytest.mark.parametrize(("model", "left"), [("sc", 3), ("tso", 3)])
def test_a_death_leaves_the_stores_before_it_and_no_others(model, left):
    """Two stores: none, the first, or both."""
    seen = set()

    def heir(world):
        seen.add(world.read(X, 2))

    def mortal(world):
        world.write(X, b"\1")
        world.read(Y, 1)
        world.write(X + 1, b"\1")
        world.read(Y, 1)

    scenario = two(mortal, lambda _world: None, kills=1, heirs={"one": [heir]})
    explore(scenario, model)
    assert len(seen) == left
    assert b"\0\1" not in seen


def test_preemptions_are_bounded_and_what_is_left_is_still_wrong_without_a_fence():
    sides = crossing(X, Y, fence=False), crossing(Y, X, fence=False)
    few, many, all_ = (Explorer(two(*sides), MODELS["sc"](), preemptions=bound).run().orders for bound in (0, 1, None))
    assert few == 2
    assert few < many < all_
    seen = set()
    explore(two(*sides, check=lambda values, _image: seen.add(tuple(values.values()))), "tso", preemptions=0)
    assert (0, 0) in seen


def test_too_many_states_are_an_error_and_no_silence():
    with pytest.raises(RuntimeError, match="more than 100 states"):
        explore(exchange(2), limit=100)
