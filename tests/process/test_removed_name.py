"""Somebody removes the name of a region under those who use it: they go on, and its coordinator lets others in."""

from __future__ import annotations

import os
import socket

import pytest
from vqshm_harness import PATIENCE, descriptors, echo_spec, new_name

from vqshm import Driver
from vqshm.errors import DeadlineExceeded, NameInUse, NotFound, ReadOnlyMemory, UntrustedPeer
from vqshm.host import Condition, Coordinator, look_at, sweep
from vqshm.host.system import names, shm
from vqshm.notify import Deadline
from vqshm.transport import Channel
from vqshm.view.snapshot import Observer


def remove_face(region) -> None:
    """What a third party does with `rm`, or a session manager at the end of a session."""
    (names.paper_path(region.name) if region.memory == "memfd" else shm.DIRECTORY / f"vqshm.{region.name}").unlink()


@pytest.mark.fault("E05")
@pytest.mark.parametrize("memory", ["named", "memfd"])
def test_a_region_whose_name_somebody_removed_goes_on_and_its_coordinator_lets_others_in(make_region, memory):
    region = make_region(echo_spec(), echo_spec("other"), memory=memory)
    region.echo("echo0")
    with Driver.attach(region.name, "echo0") as driver:
        remove_face(region)
        assert driver.request(b"x", 8, timeout=PATIENCE) == b"x"
        driver.reset(PATIENCE)
        assert driver.request(b"x", 8, timeout=PATIENCE) == b"x"
        region.echo("other")
        before = descriptors()
        with Driver.attach(region.name, "other") as late:
            assert late.request(b"late", 8, timeout=PATIENCE) == b"late"
            with pytest.raises(ReadOnlyMemory):
                Observer(region.name).manifest.device(0).status = 1
        del late
        assert descriptors() == before
    region.coordinator.finish()
    assert not names.socket_path(region.name).exists()
    with pytest.raises(NotFound):
        Driver.attach(region.name, "echo0")


@pytest.mark.fault("E05", "D11")
@pytest.mark.parametrize("memory", ["named", "memfd"])
def test_nobody_takes_the_name_of_a_coordinator_whose_file_was_removed_while_it_listens(make_region, memory):
    region = make_region(memory=memory)
    remove_face(region)
    found = look_at(region.name)
    assert (found.condition, found.owner.pid) == (Condition.UNNAMED, region.coordinator.pid)
    region.coordinator.freeze()  # it answers nobody, but it has not ended
    with pytest.raises(NameInUse, match=str(region.coordinator.pid)):
        Coordinator(region.name, [echo_spec()])
    assert region.name not in sweep([region.name], force=True)
    assert names.socket_path(region.name).exists()
    with pytest.raises(DeadlineExceeded):
        Driver.attach(region.name, timeout=0.05)
    region.coordinator.kill()
    with pytest.raises(NotFound):
        look_at(region.name)
    with pytest.raises(NotFound):
        Driver.attach(region.name)
    with Coordinator(region.name, [echo_spec()]):
        assert look_at(region.name).owner.pid == os.getpid()


@pytest.mark.fault("E05", "F01")
@pytest.mark.parametrize("what", ["a file for all", "no file"])
def test_what_an_impostor_hands_over_in_the_place_of_a_removed_name_is_looked_at_first(start, tmp_path, what):
    name = new_name()
    impostor = start(pretend, name, str(tmp_path / "x"), what)
    assert impostor.hear() == "ready"
    before = descriptors()
    with pytest.raises(UntrustedPeer):
        Driver.attach(name, timeout=PATIENCE)
    assert descriptors() == before


def pretend(me, name, path, what):
    """Listen where a coordinator would, and hand over something else than a region."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT) if what == "a file for all" else os.pipe()[0]
    if what == "a file for all":
        os.fchmod(fd, 0o666)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(names.socket_path(name)))
        listening.listen()
        me.send("ready")
        listening.accept()[0].close()  # who asks whether somebody listens
        channel = Channel(listening.accept()[0])
        request = channel.receive(Deadline(PATIENCE)).message
        channel.send({"type": "opened", "serial": request.get("serial", 0)}, (fd,), Deadline(PATIENCE))
        names.socket_path(name).unlink()
        me.recv()
