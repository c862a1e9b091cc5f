"""One owner for each name, one process for each role; nobody who connects can disturb the others."""

from __future__ import annotations

import collections
import contextlib
import errno
import itertools
import os
import resource
import select
import signal
import socket
import struct
import tempfile
import threading
from pathlib import Path

import msgpack
import pytest
from vqshm_harness import (
    BOTH,
    ECHO_ID,
    PATIENCE,
    clear_away,
    coordinate,
    descriptors,
    echo_spec,
    new_name,
    wait_until,
)

from vqshm import Coordinator, Device, Driver, spec
from vqshm.closing import close_all
from vqshm.errors import (
    CoordinatorGone,
    DeadlineExceeded,
    ForkedHandle,
    InvalidSize,
    InvalidState,
    NameInUse,
    NotFound,
    PeerGone,
    RoleTaken,
    RuleError,
    ShmFull,
    VersionMismatch,
)
from vqshm.host import ProcessId, look_at
from vqshm.host.coordination.coordinator import MAX_CLIENTS
from vqshm.host.system import names, shm
from vqshm.notify import Deadline
from vqshm.transport import Channel, DeviceSpec, QueueSpec

RING = spec.mask(spec.VIRTIO_F_VERSION_1)


@pytest.fixture
def name():
    name = new_name()
    yield name
    clear_away(name)


class Line:
    """A control connection without an endpoint behind it."""

    def __init__(self, region: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect(str(names.socket_path(region)))
        self.channel = Channel(self.sock, max_fds=253)

    def ask(self, kind: str, **fields) -> dict:
        """The answer; events before it are dropped, and so are descriptors."""
        self.channel.send({"type": kind, **fields}, (), Deadline(PATIENCE))
        return self.answer()

    def answer(self) -> dict:
        while True:
            message, fds = self.channel.receive(Deadline(PATIENCE))
            close_all(fds)
            if message["type"] != "event":
                return message

    def attach(self, role: str, device: str = "echo0", **fields) -> dict:
        offer = {"features": RING} if role == "device" else {}
        return self.ask("attach", role=role, device=device, **{**ProcessId.own()._asdict(), **offer, **fields})

    def is_dropped(self) -> bool:
        """Wait until the coordinator closes the connection."""
        try:
            while True:
                close_all(self.channel.receive(Deadline(PATIENCE)).fds)
        except PeerGone:
            return True


@pytest.fixture
def line():
    """Open a control connection to a region."""
    lines = []

    def connect(region) -> Line:
        lines.append(Line(region.name))
        return lines[-1]

    yield connect
    for each in lines:
        each.channel.close()


def is_well(region) -> bool:
    """Whether the region still serves whoever behaves."""
    connection = Line(region.name)
    with connection.channel:
        return connection.ask("list")["region"] == region.name


def kind(answer: dict) -> str:
    assert answer["type"] == "error", answer
    return answer["kind"]


# -- one owner ---------------------------------------------------------------------------------------------------------


@BOTH
def test_a_name_in_use_is_refused_and_its_owner_untouched(make_region, notify):
    region = make_region(notify=notify)
    region.echo()
    with Driver.attach(region.name) as driver:
        before = descriptors()
        with pytest.raises(NameInUse, match=str(region.coordinator.pid)):
            Coordinator(region.name, [echo_spec()], notify=notify)
        assert descriptors() == before
        assert driver.request(b"still here", 64) == b"still here"
        driver.reset()
        assert driver.request(b"and in control", 64) == b"and in control"
    with Driver.attach(region.name) as driver:
        assert driver.request(b"and to be found", 64) == b"and to be found"


@pytest.mark.fault("F03")
def test_a_name_that_carries_something_else_is_refused_and_left(name):
    path = shm.DIRECTORY / f"vqshm.{name}"
    path.write_bytes(b"not a region".ljust(4096))
    path.chmod(0o600)
    with pytest.raises(NameInUse, match="not ours"):
        Coordinator(name, [echo_spec()])
    assert path.read_bytes().startswith(b"not a region")
    path.unlink()


@pytest.mark.fault("F03")
def test_a_name_that_somebody_takes_at_the_last_moment_is_left_to_them(name, monkeypatch):
    theirs = shm.create(name, 4096)
    monkeypatch.setattr(shm, "existing", list)
    with pytest.raises(NameInUse):
        Coordinator(name, [echo_spec()])
    assert (shm.DIRECTORY / f"vqshm.{name}").exists()
    theirs.close()


def race(me, name):
    me.send("at the start")
    me.recv()
    try:
        with Coordinator(name, [echo_spec()]) as coordinator:
            me.send("won")
            coordinator.serve(stop=me.fileno())
    except NameInUse:
        me.send("lost")


@pytest.mark.fault("D11")
@pytest.mark.parametrize("times", [20, pytest.param(100, marks=pytest.mark.long)])
def test_of_two_coordinators_that_start_at_once_exactly_one_wins(start, name, times):
    for _ in range(times):
        racers = [start(race, name), start(race, name)]
        assert [racer.hear() for racer in racers] == ["at the start"] * 2
        for racer in racers:
            racer.say("go")
        assert sorted(racer.hear() for racer in racers) == ["lost", "won"]
        assert look_at(name).owner.pid in {racer.pid for racer in racers}
        for racer in racers:
            racer.finish()


def test_a_name_can_be_used_again_at_once_when_it_was_closed(name):
    for _ in range(5):
        with Coordinator(name, [echo_spec()]):
            assert look_at(name).owner == ProcessId.own()
        assert name not in shm.existing()


def test_closing_twice_and_closing_what_somebody_removed_raises_nothing(name):
    before = descriptors()
    coordinator = Coordinator(name, [echo_spec()], notify="semaphore")
    shm.unlink(name)
    coordinator.close()
    coordinator.close()
    assert not list(shm.DIRECTORY.glob(f"*vqshm.{name}*"))
    del coordinator
    assert descriptors() == before


def test_closing_leaves_a_successor_under_the_same_name_alone(start, name):
    coordinator = Coordinator(name, [echo_spec()])
    shm.unlink(name)
    names.socket_path(name).unlink()
    successor = start(coordinate, name, (echo_spec(),))
    assert successor.hear() == "ready"
    coordinator.close()
    assert look_at(name).owner.pid == successor.pid
    assert names.socket_path(name).exists()
    successor.finish()


@pytest.mark.fault("D09")
def test_a_region_is_not_found_before_it_is_whole(name, monkeypatch):
    seen = []

    def look(*_args, **_kwargs):
        with pytest.raises((NotFound, InvalidState, CoordinatorGone)):
            Driver.attach(name)
        seen.append(look_at(name).condition)
        raise KeyboardInterrupt

    monkeypatch.setattr("vqshm.host.coordination.ground.write_manifest", look)
    before = descriptors()
    with pytest.raises(KeyboardInterrupt):
        Coordinator(name, [echo_spec()], notify="semaphore")
    assert seen == ["in the making"]
    assert not list(shm.DIRECTORY.glob(f"*vqshm.{name}*"))
    assert not names.socket_path(name).exists()
    assert descriptors() == before


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.fault("E01")
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("UPPER", [echo_spec()]), RuleError),
        (("a/b", [echo_spec()]), RuleError),
        (("x" * 32, [echo_spec()]), RuleError),
        (("", [echo_spec()]), RuleError),
        ((None, [echo_spec()]), RuleError),
        (("none", []), RuleError),
        (("twice", [echo_spec("a"), echo_spec("a")]), RuleError),
        (("manydev", [echo_spec(f"e{i}", buffers=1) for i in range(65)]), RuleError),
        (("noqueue", [DeviceSpec("a", ECHO_ID, ())]), RuleError),
        (("manyqueues", [echo_spec(queues=127, buffers=1)]), RuleError),
        (("huge", [echo_spec(buffers=1 << 40)]), RuleError),
        (("toobig", [echo_spec(buffers=1 << 39)]), ShmFull),
        (("other", [echo_spec()], {"notify": "pigeon"}), ValueError),
        (("other", [echo_spec()], {"memory": "stone"}), ValueError),
        (("other", [echo_spec()], {"memory": "memfd", "notify": "semaphore"}), ValueError),
    ],
)
def test_an_impossible_region_is_refused_and_leaves_nothing(arguments, error):
    before = descriptors(), shm.existing()
    name, devices, *options = arguments
    with pytest.raises(error):
        Coordinator(name, devices, **(options[0] if options else {}))
    assert name not in shm.existing()
    assert descriptors() == before[0]


def test_a_queue_of_an_impossible_size_is_refused():
    for size in (0, -1, 3, 65536, 1.5, "8", None):
        with pytest.raises((InvalidSize, TypeError)):
            QueueSpec(size)


@BOTH
def test_as_many_queues_as_fit_into_one_message(make_region, notify):
    region = make_region(echo_spec(queues=126, size=2, buffers=4096), notify=notify)
    region.echo()
    with Driver.attach(region.name) as driver:
        for queue in (0, 63, 125):
            assert driver.request(b"x", 1, queue=queue) == b"x"


# -- roles -------------------------------------------------------------------------------------------------------------


@BOTH
def test_a_role_that_is_taken_is_refused_and_its_holder_named(make_region, notify):
    region = make_region(notify=notify)
    device = region.echo()
    with Driver.attach(region.name) as driver:
        before = descriptors()
        with pytest.raises(RoleTaken, match=str(device.pid)):
            Device.attach(region.name)
        with pytest.raises(RoleTaken, match=str(os.getpid())):
            Driver.attach(region.name)
        assert descriptors() == before
        assert driver.request(b"x", 1) == b"x"


def test_a_role_is_free_as_soon_as_its_holder_has_closed(served):
    for _ in range(20):
        with Driver.attach(served.name) as driver:
            assert driver.request(b"x", 1) == b"x"


def test_a_device_that_does_not_exist_is_an_error_that_lists_those_that_do(make_region):
    region = make_region(echo_spec("left"), echo_spec("right"))
    with pytest.raises(NotFound, match=r"middle.*left, right"):
        Driver.attach(region.name, "middle")
    with pytest.raises(NotFound, match=r"several.*left, right"):
        Device.attach(region.name)
    with pytest.raises(NotFound, match=region.name):
        Driver.attach("nowhere")


def test_the_coordinator_does_not_know_what_the_plan_does_not_know(region, line):
    answer = line(region).attach("driver", "nobody")
    assert (kind(answer), "echo0" in answer["message"]) == ("NotFound", True)


def test_a_role_is_free_when_its_holder_s_connection_ends(region, line):
    first = line(region)
    assert first.attach("driver")["type"] == "attached"
    assert kind(line(region).attach("driver")) == "RoleTaken"
    first.channel.close()
    wait_until(lambda: region.start(take_role).hear() == "attached", "the role is free")


def take_role(me, name):
    me.send("up")
    connection = Line(name)
    me.send(connection.attach("driver")["type"])


@pytest.mark.fault("F01")
@pytest.mark.parametrize("lie", ["another process", "a start time", "nobody"])
def test_a_client_that_says_it_is_somebody_else_is_not_believed(region, line, lie):
    own = ProcessId.own()
    claim = {
        "another process": ProcessId.of(region.coordinator.pid),
        "a start time": own._replace(start_time=own.start_time + 1),
        "nobody": ProcessId(0, 0),
    }[lie]
    assert kind(line(region).attach("driver", **claim._asdict())) == "UntrustedPeer"
    assert line(region).attach("driver")["type"] == "attached"


@pytest.mark.fault("F11")
def test_a_connection_attaches_once(region, line):
    connection = line(region)
    assert connection.attach("driver")["type"] == "attached"
    assert kind(connection.attach("driver")) == "InvalidState"
    assert kind(connection.attach("device")) == "InvalidState"
    assert line(region).attach("device")["type"] == "attached"


def test_a_connection_that_was_refused_a_role_may_try_another(region, line):
    assert line(region).attach("driver")["type"] == "attached"
    connection = line(region)
    for _ in range(50):
        assert kind(connection.attach("driver")) == "RoleTaken"
    assert connection.attach("device")["type"] == "attached"
    assert is_well(region)


def test_refusals_leak_nothing_in_the_coordinator(region, line):
    assert line(region).attach("driver")["type"] == "attached"
    connection = line(region)
    connection.attach("driver")
    before = region.coordinator.descriptors()
    for _ in range(100):
        connection.attach("driver")
    assert region.coordinator.descriptors() == before


# -- messages at the wrong moment --------------------------------------------------------------------------------------


@pytest.mark.fault("F11")
@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("detach", {}),
        ("features", {"bits": RING}),
        ("status", {"value": 0}),
        ("stopped", {}),
        ("needs_reset", {"reason": "x"}),
        ("config", {"offset": 0, "data": b"x"}),
        ("ok", {}),
        ("event", {"what": "closing"}),
    ],
)
def test_nothing_of_a_role_is_done_before_it_is_taken(region, line, message, fields):
    assert kind(line(region).ask(message, **fields)) == "InvalidState"
    assert is_well(region)


@pytest.mark.fault("F11")
@pytest.mark.parametrize(
    ("role", "message", "fields"),
    [
        ("driver", "stopped", {}),
        ("driver", "needs_reset", {"reason": "x"}),
        ("driver", "config", {"offset": 0, "data": b"x"}),
        ("driver", "ok", {}),
        ("device", "features", {"bits": RING}),
        ("device", "status", {"value": 0}),
        ("device", "event", {"what": "start"}),
    ],
)
def test_who_sends_the_other_role_s_message_is_dropped(region, line, role, message, fields):
    connection = line(region)
    connection.attach(role)
    assert kind(connection.ask(message, **fields)) == "ProtocolError"
    assert connection.is_dropped()
    assert line(region).attach(role)["type"] == "attached"


@pytest.mark.fault("F11")
def test_a_device_that_stops_without_having_been_started_is_told_so(region, line):
    device = line(region)
    device.attach("device")
    assert kind(device.ask("stopped")) == "InvalidState"


@pytest.mark.fault("F11")
def test_the_status_register_takes_no_short_cuts(region, line):
    device, driver = line(region), line(region)
    device.attach("device")
    driver.attach("driver")
    assert kind(driver.ask("features", bits=RING)) == "InvalidState"
    assert kind(driver.ask("status", value=spec.STATUS_DRIVER)) == "NegotiationError"
    assert kind(driver.ask("status", value=0xFF)) == "NegotiationError"
    assert kind(driver.ask("status", value=15)) == "NegotiationError"
    assert driver.ask("status", value=0)["value"] == 0
    assert driver.ask("status", value=1)["value"] == 1
    assert kind(driver.ask("status", value=2)) == "NegotiationError"
    assert driver.ask("status", value=3)["value"] == 3


def test_features_that_were_not_offered_are_refused_and_the_register_stays(region, line):
    device, driver = line(region), line(region)
    device.attach("device")
    driver.attach("driver")
    for value in (0, 1, 3):
        driver.ask("status", value=value)
    for bits in (0, RING | 1, 1 << 63):
        assert driver.ask("features", bits=bits)["type"] == "ok"
        assert kind(driver.ask("status", value=11)) == "NegotiationError"
    driver.ask("features", bits=RING)
    assert driver.ask("status", value=11)["value"] == 11
    assert kind(driver.ask("features", bits=RING)) == "InvalidState"  # they are final now


@pytest.mark.parametrize("config", [b"x" * 257, b"x" * 4096])
def test_a_configuration_that_does_not_fit_takes_no_role(region, line, config):
    connection = line(region)
    assert kind(connection.attach("device", config=config)) == "RuleError"
    assert connection.attach("device", config=b"x" * 256)["type"] == "attached"


# -- garbage -----------------------------------------------------------------------------------------------------------


def frame(message: object, fds: int = 0, version: int = 1) -> bytes:
    body = msgpack.packb(message)
    return struct.pack("<IHH", len(body), version, fds) + body


GARBAGE = {
    "noise": os.urandom(200),
    "zeros": bytes(64),
    "a short header": b"\1\0",
    "a length that lies": struct.pack("<IHH", 1 << 31, 1, 0) + b"\x80",
    "another version": frame({"type": "list"}, version=2),
    "descriptors that are not there": frame({"type": "list"}, fds=3),
    "no map": frame([1, 2, 3]),
    "no type": frame({"a": 1}),
    "an unknown type": frame({"type": "please"}),
    "an unknown field": frame({"type": "list", "x": 1}),
    "a huge array": struct.pack("<IHH", 5, 1, 0) + b"\xdd\xff\xff\xff\xff",
    "deep nesting": struct.pack("<IHH", 60000, 1, 0) + b"\x91" * 60000,
    "an extension": frame({"type": msgpack.ExtType(5, b"x")}),
    "a float": frame({"type": "status", "value": 1.0}),
    "a frame that is too long": bytes(70000),
}


@pytest.mark.fault("F09")
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_who_sends_garbage_is_dropped_and_told_why(region, line, garbage):
    neighbour, connection = line(region), line(region)
    assert neighbour.attach("driver")["type"] == "attached"
    connection.sock.sendall(garbage)
    assert kind(connection.answer()) == "ProtocolError"
    assert connection.is_dropped()
    assert neighbour.ask("status", value=0)["type"] == "ok"


@pytest.mark.fault("F10")
def test_descriptors_that_nobody_asked_for_are_not_taken(region, line):
    before = region.coordinator.descriptors()
    for _ in range(20):
        connection = line(region)
        socket.send_fds(connection.sock, [frame({"type": "list"}, fds=2)], [0, 0])
        assert connection.is_dropped()
    wait_until(lambda: region.coordinator.descriptors() == before, "all are closed")


@pytest.mark.fault("F14")
def test_a_thousand_frames_at_once_are_answered_one_by_one(region, line):
    connection = line(region)
    replies = 0
    connection.sock.setblocking(True)
    for _ in range(1000):
        while True:
            try:
                connection.sock.send(frame({"type": "list"}), socket.MSG_DONTWAIT)
                break
            except BlockingIOError:
                replies += connection.answer()["type"] == "listing"
    while replies < 1000:
        replies += connection.answer()["type"] == "listing"


@pytest.mark.fault("F13")
def test_a_client_that_never_reads_is_dropped_and_holds_nobody_up(region, line):
    deaf, neighbour = line(region), line(region)
    assert neighbour.attach("driver")["type"] == "attached"
    deaf.sock.settimeout(PATIENCE)
    asked = itertools.repeat(frame({"type": "list"}))
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        collections.deque(map(deaf.sock.send, asked), maxlen=0)
    assert neighbour.ask("status", value=0)["type"] == "ok"
    assert is_well(region)


def test_a_driver_that_never_reads_is_not_dropped_because_the_device_changes_its_configuration(region):
    with Device.attach(region.name) as device:
        served = region.start(silent_driver)
        device.wait_driver(PATIENCE)
        for value in range(2000):
            device.update_config(0, struct.pack("<I", value))
        served.say("look")
        assert served.hear() == (1999, False)


def silent_driver(me, name):
    me.send("up")
    with Driver.attach(name) as driver:
        me.recv()
        driver.hear()
        me.send((driver.config.u32(0), driver.coordinator_gone))


# -- many --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.fault("F14")
def test_of_a_thousand_silent_connections_the_oldest_make_room_and_everybody_is_served(served, many_descriptors):
    flood = []
    with Driver.attach(served.name) as driver:
        try:
            for _ in range(1000):
                flood.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                flood[-1].connect(str(names.socket_path(served.name)))
            too_many = len(flood) + 2 - MAX_CLIENTS  # the driver and the device are inside
            wait_until(lambda: len(hung_up(flood)) == too_many, "all of them were accepted or turned away")
            assert set(hung_up(flood)) == {sock.fileno() for sock in flood[:too_many]}
            driver.reset()  # those inside
            assert driver.request(b"x", 1) == b"x"
            with pytest.raises(RoleTaken):  # and whoever comes
                Driver.attach(served.name)
            assert is_well(served)
        finally:
            for sock in flood:
                sock.close()
    with Driver.attach(served.name) as driver:
        assert driver.request(b"x", 1) == b"x"


@pytest.mark.fault("F09")
def test_who_sends_byte_by_byte_or_nothing_holds_nobody_up(served, line):
    silent = [line(served) for _ in range(20)]
    for byte in (b"\x00", b"\x81", b"\xff"):
        slow = line(served)
        slow.sock.send(byte)  # a packet is a frame: there are no halves to wait for
        assert kind(slow.channel.receive(Deadline(PATIENCE)).message) == "ProtocolError"
        with pytest.raises(PeerGone):
            slow.channel.receive(Deadline(PATIENCE))
    with Driver.attach(served.name) as driver:
        assert driver.request(b"x", 1, timeout=PATIENCE) == b"x"
    assert silent[0].ask("list")["region"] == served.name  # it may take its time


BOMBS = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdd\x00\x10\x00\x00" + bytes(60_000),
    b"\x91" * 60_000,
    b"\x81\xa1a" * 20_000,
    b"\xdc\x00\x0f" + (b"\xdc\x00\x40" + (b"\xdc\x00\x40" + b"\x90" * 64) * 64) * 15,
]


@pytest.mark.fault("F05", "F06")
def test_bombs_of_msgpack_do_not_make_the_coordinator_grow(region, line):
    def explode(times: int) -> None:
        for body in BOMBS * times:
            each = Line(region.name)
            with each.channel:
                each.sock.send(struct.pack("<IHH", len(body), 1, 0) + body)
                assert kind(each.channel.receive(Deadline(PATIENCE)).message) == "ProtocolError"

    explode(3)  # what the first of each kind costs once
    before = own_bytes(region.coordinator.pid)
    explode(30)
    assert own_bytes(region.coordinator.pid) - before < 30 * sum(map(len, BOMBS)) // 2  # half of what came, at most
    assert is_well(region)


def own_bytes(pid: int) -> int:
    """Resident memory but for files: pages of libraries come and go with what is run."""
    resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * resource.getpagesize()


def hung_up(sockets: list[socket.socket], seconds: float = 0) -> list[int]:
    """Those whose other end was closed."""
    poller = select.poll()
    for sock in sockets:
        poller.register(sock, 0)
    return [fd for fd, events in poller.poll(seconds * 1000) if events & select.POLLHUP]


def cramped(me, name):
    """A coordinator that may open few descriptors."""
    with Coordinator(name, [echo_spec()]) as coordinator:
        limit = descriptors() + 8
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        me.send("ready")
        coordinator.serve(stop=me.fileno())


@pytest.mark.fault("E07")
def test_a_coordinator_without_descriptors_turns_connections_away_and_does_not_spin(start, name):
    actor = start(cramped, name)
    assert actor.hear() == "ready"
    inside = Line(name)
    assert inside.attach("driver")["type"] == "attached"
    flood = [Line(name) for _ in range(30)]
    wait_until(lambda: hung_up([each.sock for each in flood]), "some are turned away")
    assert inside.ask("status", value=0)["type"] == "ok"
    wait_until(lambda: actor.state() == "S", "it sleeps")
    before = actor.cpu_seconds()
    select.select([], [], [], 0.2)
    assert actor.cpu_seconds() - before < 0.1
    for each in flood:
        each.channel.close()
    inside.channel.close()
    wait_until(lambda: attaches(name), "there is room again")
    actor.finish()


@pytest.mark.fault("E07")
def test_an_attach_that_finds_no_descriptors_left_takes_no_role(start, name):
    actor = start(cramped, name)
    assert actor.hear() == "ready"
    idle = [Line(name) for _ in range(8)]
    for each in reversed(idle):
        with contextlib.suppress(PeerGone):
            assert each.attach("driver")["type"] == "attached"
            break
    for each in idle:
        each.channel.close()
    wait_until(lambda: attaches(name), "the role is there")
    actor.finish()


def attaches(name: str) -> bool:
    connection = Line(name)
    with connection.channel:
        try:
            return connection.attach("driver")["type"] == "attached"
        except PeerGone:
            return False


def test_a_stopped_coordinator_with_a_full_backlog_is_a_deadline_and_not_a_hang(region):
    region.coordinator.freeze()
    waiting = []
    try:
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK))
                waiting[-1].connect(str(names.socket_path(region.name)))
        before = descriptors()
        for timeout in (0, 0.05):
            with pytest.raises(DeadlineExceeded, match=str(region.coordinator.pid)):
                Driver.attach(region.name, timeout=timeout)
        assert descriptors() == before
    finally:
        for sock in waiting:
            sock.close()
        region.coordinator.signal(signal.SIGCONT)


# -- serving -----------------------------------------------------------------------------------------------------------


def test_serving_ends_when_it_is_told_and_can_begin_again(name):
    with Coordinator(name, [echo_spec()]) as coordinator:
        for _ in range(3):
            out, in_ = os.pipe()
            os.write(in_, b"x")
            coordinator.serve(stop=out)
            os.close(out)
            os.close(in_)
        assert coordinator.step() == []  # a stop descriptor of before is not looked at any more


def test_serving_ends_when_a_signal_handler_closes_it(start, name):
    actor = start(closes_on_sigterm, name)
    assert actor.hear() == "ready"
    actor.signal(signal.SIGTERM)
    assert actor.hear() == "served"
    assert actor.end() == 0
    assert name not in shm.existing()


def closes_on_sigterm(me, name):
    coordinator = Coordinator(name, [echo_spec()])
    signal.signal(signal.SIGTERM, lambda *_: coordinator.close())
    me.send("ready")
    coordinator.serve()
    me.send("served")


def test_a_step_waits_for_nobody(name):
    with Coordinator(name, [echo_spec()]) as coordinator:
        assert coordinator.step() == []
        assert coordinator.step(0.001) == []


def test_those_attached_hear_that_the_region_closes(make_region, line):
    region = make_region()
    connection = line(region)
    connection.attach("driver")
    region.coordinator.finish()
    assert connection.channel.receive(Deadline(PATIENCE)).message == {"type": "event", "what": "closing"}
    assert connection.is_dropped()


def forks_and_serves(me, name):
    """A coordinator whose process has a forked child that outlives it."""
    with Coordinator(name, [echo_spec()]) as coordinator:
        out, in_ = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(in_)
            try:
                coordinator.step()
                verdict = "served"
            except ForkedHandle:
                verdict = "ForkedHandle"
            coordinator.close()
            me.send(verdict)
            me.close()
            os.read(out, 1)
            os._exit(0)
        me.send("serves")
        coordinator.serve(stop=me.fileno())


@pytest.mark.fault("D18")
def test_a_forked_child_of_a_coordinator_neither_serves_nor_closes_nor_hides_its_end(start, name):
    actor = start(forks_and_serves, name)
    assert {actor.hear(), actor.hear()} == {"serves", "ForkedHandle"}
    assert look_at(name).owner.pid == actor.pid
    with Device.attach(name) as device:
        actor.kill()
        with pytest.raises(InvalidState, match="no driver will come"):
            device.wait_driver(PATIENCE)  # it sees the end although the child lives
        assert device.coordinator_gone
        with pytest.raises(CoordinatorGone):
            device.update_config(0, b"x")
    with pytest.raises(CoordinatorGone, match="does not answer"):
        Driver.attach(name)


def test_errors_of_the_kernel_for_one_client_do_not_end_the_coordinator(name, monkeypatch):
    with Coordinator(name, [echo_spec()]) as coordinator:
        broken = Line(name)
        broken.channel.send({"type": "attach", "role": "driver", "device": "echo0", **ProcessId.own()._asdict()})

        def no_descriptors(*_args):
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(os, "pidfd_open", no_descriptors)
            for _ in range(3):
                coordinator.step()
        assert broken.is_dropped()
        broken.channel.close()
        thread = threading.Thread(target=lambda: [coordinator.step(PATIENCE) for _ in range(2)])
        thread.start()
        again = Line(name)
        assert again.attach("driver")["type"] == "attached"
        again.channel.close()
        thread.join()


@pytest.mark.fault("E09")
def test_what_a_region_of_another_version_is_called(region):
    with (shm.DIRECTORY / f"vqshm.{region.name}").open("r+b") as file:
        file.seek(8)
        file.write(struct.pack("<I", 99))
        file.flush()
        for attach in (Driver.attach, Device.attach):
            with pytest.raises(VersionMismatch, match="99"):
                attach(region.name)
        file.seek(8)
        file.write(struct.pack("<I", 1))


@pytest.mark.fault("F01")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_s_process_is_turned_away_before_it_is_read(region, start):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = names.socket_path(region.name)
        path.chmod(0o666)
        try:
            os.link(path, Path(folder, "door"))  # past the directory that would keep it out
        except OSError as error:
            pytest.skip(f"the socket cannot be reached by another way: {error}")
        assert start(stranger, f"{folder}/door").hear() == "turned away"
    assert is_well(region)


def stranger(me, path):
    os.setuid(4242)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(path)
    with contextlib.suppress(OSError):
        sock.send(frame({"type": "list"}))
    try:
        answer = sock.recv(1000)
    except ConnectionError:
        answer = b""
    me.send(answer or "turned away")
