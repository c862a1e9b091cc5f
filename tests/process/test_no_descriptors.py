"""At the limit of open files every call fails by name, leaves nothing open, and works once there is room again."""

from __future__ import annotations

import errno
import gc
import resource

import pytest
from vqshm_harness import PATIENCE, clear_away, descriptors, echo_spec, wait_until

from vqshm import Coordinator, Device, Driver
from vqshm.errors import RoleTaken, VqshmError
from vqshm.host import ProcessId, Watch
from vqshm.host.system import names, shm
from vqshm.notify import EventFd
from vqshm.view.snapshot import take

MOST = 40  # descriptors that any of these calls takes, and more


def drive(name):
    with Driver.attach(name, "echo0", timeout=PATIENCE) as driver:
        driver.reset(PATIENCE)


def serve(name):
    Device.attach(name, "idle").close()


def coordinate(name):
    Coordinator(f"{name}-new", [echo_spec()]).close()


def coordinate_by_semaphores(name):
    Coordinator(f"{name}-new", [echo_spec()], notify="semaphore").close()


def coordinate_sealed(name):
    Coordinator(f"{name}-new", [echo_spec()], memory="memfd").close()


def watch(_name):
    Watch(ProcessId.own()).close()


def ring(_name):
    EventFd.create().close()


def sweep(name):
    names.sweep([name])


CALLS = {
    call.__name__: call
    for call in (
        drive,
        serve,
        coordinate,
        coordinate_by_semaphores,
        coordinate_sealed,
        watch,
        ring,
        sweep,
        take,
        names.look_at,
    )
}


def starving(me, name, call):
    """Make the call with 0, 1, 2 … descriptors left, until there are enough."""
    function = CALLS[call]
    function(name)  # whatever is imported at the first time
    gc.collect()
    before = descriptors()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    failures = []
    for left in range(MOST):
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + left, limit[1]))
        try:
            function(name)
        except (OSError, VqshmError) as error:
            failures.append(f"{type(error).__name__}: {error}")
            named = isinstance(error, VqshmError) or error.errno == errno.EMFILE
        else:
            break
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        assert named, failures[-1]
        gc.collect()
        assert descriptors() == before, failures
        retried(function, name)  # with room it works at once
    else:
        raise AssertionError(failures)
    me.send(failures)


def retried(function, name):
    """The role of one who failed is free when the coordinator has noticed."""

    def works() -> bool:
        try:
            function(name)
        except RoleTaken:
            return False
        return True

    wait_until(works, "it works")


@pytest.mark.fault("E07")
@pytest.mark.parametrize(
    ("memory", "notify"),
    [("named", "eventfd"), ("memfd", "eventfd"), ("named", "semaphore")],
    ids=["named", "memfd", "semaphores"],
)
@pytest.mark.parametrize("call", CALLS)
def test_at_the_limit_of_descriptors_a_call_fails_by_name_leaks_nothing_and_works_later(
    make_region, start, call, memory, notify
):
    region = make_region(echo_spec(), echo_spec("idle"), memory=memory, notify=notify)
    region.echo("echo0")
    actor = start(starving, region.name, call)
    failures = actor.hear()
    assert failures, "it opens at least one"
    assert f"{region.name}-new" not in shm.existing()
    clear_away(f"{region.name}-new")
    region.coordinator.finish()
