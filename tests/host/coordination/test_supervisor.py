"""The supervisor starts what died again, later each time, and stops when that is in vain."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
from vqshm_harness import ECHO_ID, PATIENCE, descriptors

from vqshm import Driver
from vqshm.errors import NotFound, PeerGone, RuleError
from vqshm.host import Handle, Supervise, Supervisor, Worker
from vqshm.host.coordination.launcher import same_python
from vqshm.host.coordination.supervisor import What, give_up
from vqshm.transport import DeviceSpec

QUICK = Supervise(max_restarts=3, within=60, backoff=(0.01, 0.02))
ENDS = "import sys; sys.exit({})"
SLEEPS = "import time; time.sleep(1000)"


def worker(code, supervise=QUICK, name="w", device=None):
    return Worker(name, [sys.executable, "-S", "-c", code], supervise, device)


def happenings(supervisor):
    seen = []
    while supervisor.busy:
        seen += supervisor.step(PATIENCE)
    return seen


def test_what_ends_well_has_done_its_work():
    with Supervisor([worker(ENDS.format(0))]) as supervisor:
        pid = supervisor.pid("w")
        assert pid > 0
        (ended,) = happenings(supervisor)
        assert ended == ("w", What.ENDED, pid, 0, 0.0)
        assert supervisor.states == {"w": What.ENDED}
        assert supervisor.pid("w") == 0
        assert supervisor.step(None) == []  # nothing will happen: it does not wait


def test_what_dies_is_started_again_with_growing_pauses_until_it_is_in_vain():
    with Supervisor([worker(ENDS.format(7))]) as supervisor:
        seen = happenings(supervisor)
    assert [one.what for one in seen] == [What.DIED, What.STARTED] * 3 + [What.GAVE_UP]
    assert [one.pause for one in seen if one.what is What.DIED] == [0.01, 0.02, 0.02]
    assert {one.status for one in seen if one.what is not What.STARTED} == {7}
    assert len({one.pid for one in seen}) == 4
    assert supervisor.states == {"w": What.GAVE_UP}


def test_a_restart_is_not_before_its_pause_is_over():
    with Supervisor([worker(ENDS.format(1), Supervise(1, 60, (0.3, 0.3)))]) as supervisor:
        died = supervisor.step(PATIENCE)[0]
        start = time.monotonic()
        assert died.what is What.DIED
        assert supervisor.step(0.01) == []
        assert supervisor.step(PATIENCE)[0].what is What.STARTED
        assert time.monotonic() - start > 0.2


def test_deaths_that_are_long_ago_do_not_count():
    with Supervisor([worker(ENDS.format(1), Supervise(1, 0.05, (0.1, 0.1)))]) as supervisor:
        seen = []
        while len(seen) < 10:
            seen += supervisor.step(PATIENCE)
        assert What.GAVE_UP not in {one.what for one in seen}


def test_a_kill_is_a_death_and_one_worker_does_not_wait_for_the_other():
    workers = [worker(SLEEPS, name="a"), worker(SLEEPS, name="b"), worker(ENDS.format(3), name="c")]
    with Supervisor(workers) as supervisor:
        other = supervisor.pid("b")
        os.kill(supervisor.pid("a"), signal.SIGKILL)
        seen = []
        while not any(one.worker == "a" and one.what is What.STARTED for one in seen):
            seen += supervisor.step(PATIENCE)
        died = next(one for one in seen if one.worker == "a")
        assert (died.what, died.status) == (What.DIED, -signal.SIGKILL)
        assert supervisor.pid("a") not in {0, died.pid}
        assert supervisor.pid("b") == other
        pids = [supervisor.pid("a"), other]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_what_does_not_end_by_itself_is_killed(monkeypatch):
    monkeypatch.setattr("vqshm.host.coordination.supervisor.CLOSE_TIMEOUT", 0.1)
    stubborn = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(1000)"
    with Supervisor([worker(stubborn)]) as supervisor:
        pid = supervisor.pid("w")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    supervisor.close()


def test_it_costs_no_descriptors_and_close_is_the_end():
    before = descriptors()
    with Supervisor([worker(ENDS.format(7)), worker(SLEEPS, name="b")]) as supervisor:
        while supervisor.states["w"] is not What.GAVE_UP:
            supervisor.step(PATIENCE)
    assert descriptors() == before
    assert not supervisor.busy
    assert "b ended" in repr(supervisor)


def test_run_goes_on_until_it_is_told_to_stop():
    out, into = os.pipe()
    with Supervisor([worker(f"import os; os.write({into}, b'x'); {SLEEPS}")]) as supervisor:
        os.write(into, b"stop")
        assert supervisor.run(stop=out) == {"w": What.STARTED}
    with Supervisor([worker(ENDS.format(7)), worker(ENDS.format(0), name="b")]) as supervisor:
        assert supervisor.run(stop=-1) == {"w": What.GAVE_UP, "b": What.ENDED}
    os.close(out)
    os.close(into)


def test_a_program_that_is_not_there_is_an_error_at_once():
    running = worker(SLEEPS)
    with pytest.raises(FileNotFoundError), Supervisor([running, Worker("x", ["/no/such/program"])]):
        pass


@pytest.mark.parametrize("rules", [(-1, 1, (0, 1)), (1, 0, (0, 1)), (1, 1, (2, 1)), (1, 1, (-1, 1))])
def test_rules_that_make_no_sense_are_refused(rules):
    with pytest.raises(RuleError):
        Supervise(*rules)


# -- with a region -----------------------------------------------------------------------------------------------------

DIES_OF_IT = """
import os, sys
from vqshm import Device
with Device.attach(sys.argv[1]) as device:
    device.wait_driver()
    for chain in device:
        message = chain.reader().read()
        if message == b"die always" or (message == b"die once" and not chain.replayed):
            os.kill(os.getpid(), 9)
        device.complete(chain, chain.writer().write(message))
"""


def echo_worker(region, supervise=QUICK):
    return Worker("echo", [*same_python()[0], "-c", DIES_OF_IT, region.name], supervise, Handle(region.name))


@pytest.fixture
def pythonpath(monkeypatch):
    """As `same_python` says, for the length of a test."""
    monkeypatch.setenv("PYTHONPATH", same_python()[1]["PYTHONPATH"])


@pytest.mark.fault("D01")
@pytest.mark.usefixtures("pythonpath")
def test_a_driver_notices_of_a_supervised_device_nothing_but_a_delay(make_region, start):
    region = make_region(DeviceSpec("echo0", ECHO_ID, restart="resume"))
    with Supervisor([echo_worker(region)]) as supervisor:
        actor = start(asking, region.name, [b"live", b"die once", b"live on"])
        seen = []
        while not actor.connection.poll(0):
            seen += supervisor.step(0.05)
        assert actor.hear() == [b"live", b"die once", b"live on"]
        what = [one.what for one in seen]
        assert what[:2] == [What.DIED, What.STARTED]
        assert what[2:] in ([], [What.ENDED])  # its driver has left, and it may have noticed


@pytest.mark.usefixtures("pythonpath")
def test_when_a_device_is_given_up_its_driver_waits_no_longer(make_region, start):
    region = make_region(DeviceSpec("echo0", ECHO_ID, restart="resume"))
    with Supervisor([echo_worker(region, Supervise(1, 60, (0.01, 0.01)))]) as supervisor:
        actor = start(asking, region.name, [b"live", b"die always"])
        assert supervisor.run() == {"echo": What.GAVE_UP}
        assert actor.hear() == ["PeerGone", 1]
    region.echo()
    with Driver.attach(region.name, timeout=PATIENCE) as driver:
        assert driver.request(b"x", 8, timeout=PATIENCE) == b"x"


def asking(me, name, words):
    with Driver.attach(name, timeout=PATIENCE) as driver:
        try:
            me.send([driver.request(word, 64) for word in words])
        except PeerGone as error:
            me.send([type(error).__name__, error.facts["in_flight"]])


def test_who_gives_up_where_nobody_waits_changes_nothing(served):
    give_up(Handle(served.name), "no reason")
    with Driver.attach(served.name) as driver:
        give_up(driver.handle, "the device is there")
        assert driver.request(b"x", 8, timeout=PATIENCE) == b"x"
    with pytest.raises(NotFound):
        give_up(Handle(served.name, "other"), "there is none")
    with pytest.raises(NotFound):
        give_up(Handle("nobody-has-this-name"), "no region")
