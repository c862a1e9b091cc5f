"""The control channel keeps frames and descriptors together, blocks nobody, and closes whatever it did not ask for."""

from __future__ import annotations

import array
import contextlib
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import msgpack
import pytest
from vqshm_harness import ATTACHED, descriptors

from vqshm.closing import close_all
from vqshm.errors import DeadlineExceeded, InvalidState, PeerGone, ProtocolError, UntrustedPeer
from vqshm.notify import Deadline, EventFd
from vqshm.transport import Channel, check_peer, peer_credentials
from vqshm.transport.control import MAX_UNSENT

LIST = {"type": "list"}
SOON = 60  # seconds; no test waits for it


def frame(message: object, fds: int = 0) -> bytes:
    body = msgpack.packb(message)
    return struct.pack("<IHH", len(body), 1, fds) + body


@pytest.fixture
def sockets():
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield ends
    for end in ends:
        end.close()


@pytest.fixture
def ends(sockets):
    with Channel(sockets[0], max_fds=253) as ours, Channel(sockets[1], max_fds=253) as theirs:
        yield ours, theirs


@pytest.fixture
def hostile(sockets):
    """A bare socket, and a channel that expects up to two descriptors at its other end."""
    with Channel(sockets[1], max_fds=2) as victim:
        yield sockets[0], victim


def send_with(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


# -- what it is for ----------------------------------------------------------------------------------------------------


def test_messages_arrive_whole_and_in_order(ends):
    ours, theirs = ends
    for value in range(100):
        ours.send({"type": "status", "value": value})
    for value in range(100):
        assert theirs.receive() == ({"type": "status", "value": value}, ())
    assert theirs.receive_now() is None


def test_descriptors_arrive_with_their_message_and_are_not_inherited(ends):
    ours, theirs = ends
    with EventFd.create() as kick, EventFd.create() as call:
        ours.send(LIST)
        ours.send(ATTACHED, [kick.fileno(), call.fileno()])
        assert theirs.receive().fds == ()
        received = theirs.receive()
        assert not any(os.get_inheritable(fd.fileno()) for fd in received.fds)
        there, back = (EventFd.adopt(fd) for fd in received.fds)
        with there, back:
            kick.signal()
            assert there.wait(0)
            assert not back.wait(0)


def test_as_many_descriptors_as_the_kernel_allows(ends):
    ours, theirs = ends
    before = descriptors()
    with EventFd.create() as event:
        ours.send(ATTACHED, [event.fileno()] * 253)
        received = theirs.receive()
        assert len(received.fds) == 253
        close_all(received.fds)
    assert descriptors() == before


def test_a_receiver_waits_for_another_process(ends, sockets):
    ours, _ = ends
    program = (
        "import socket, sys; from vqshm.transport import Channel\n"
        "channel = Channel(socket.socket(fileno=int(sys.argv[1])))\n"
        "for _ in range(100): channel.send(channel.receive().message)\n"
    )
    fd = sockets[1].fileno()
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(fd)],
        pass_fds=[fd],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    sockets[1].close()
    for value in range(100):
        message = {"type": "status", "value": value}
        ours.send(message, deadline=Deadline(SOON))
        assert ours.receive(Deadline(SOON)).message == message
    assert child.wait(SOON) == 0
    with pytest.raises(PeerGone):
        ours.receive(Deadline(SOON))


def test_waiting_ends_at_the_deadline(ends):
    with pytest.raises(DeadlineExceeded):
        ends[0].receive(Deadline(0.001))


def test_ctrl_c_ends_a_wait(ends):
    def interrupt(_number: int, _frame: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt

    def receive() -> None:
        # Again and again: a signal that comes before the call sleeps would not wake it.
        signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
        ends[0].receive()

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            receive()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_a_closed_peer_is_gone(ends):
    ours, theirs = ends
    theirs.close()
    for call in (ours.receive, ours.receive_now, lambda: ours.send(LIST), lambda: ours.post(LIST)):
        with pytest.raises(PeerGone):
            call()


def test_what_a_peer_sent_before_it_closed_still_arrives(ends):
    ours, theirs = ends
    theirs.send(LIST)
    theirs.close()
    assert ours.receive().message == LIST
    with pytest.raises(PeerGone):
        ours.receive()


def test_close_is_idempotent_and_final(ends):
    ours, _ = ends
    ours.close()
    ours.close()
    for call in (ours.fileno, ours.receive, ours.receive_now, lambda: ours.send(LIST), lambda: ours.post(LIST)):
        with pytest.raises(InvalidState):
            call()


@pytest.mark.parametrize("max_fds", [-1, 254])
def test_a_channel_takes_as_many_descriptors_as_the_kernel_at_most(sockets, max_fds):
    with pytest.raises(ValueError, match="253"):
        Channel(sockets[0], max_fds=max_fds)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_only_a_seqpacket_socket_will_do(kind):
    left, right = socket.socketpair(socket.AF_UNIX, kind)
    with left, right, pytest.raises(ValueError, match="SEQPACKET"):
        Channel(left)


# -- a peer that does not read -----------------------------------------------------------------------------------------


def test_a_peer_that_never_reads_is_dropped_and_never_blocks(ends):
    ours, _ = ends
    posted = 0
    message = {"type": "config", "offset": 0, "data": bytes(4096)}
    with pytest.raises(ProtocolError, match="does not read"):  # noqa: PT012 - how many fit is the kernel's business
        while True:
            ours.post(message)
            posted += 1
    assert posted >= MAX_UNSENT
    assert len(ours._unsent) == MAX_UNSENT
    assert ours.events & select.POLLOUT


def test_what_is_kept_for_a_slow_peer_arrives_in_order_with_its_descriptors(ends):
    ours, theirs = ends
    before = descriptors()
    posted = 0
    while ours.events == select.POLLIN or posted % 5:
        with EventFd.create() as event:
            ours.post({**ATTACHED, "index": posted}, [event.fileno()] * (posted % 3))
        posted += 1
    for index in range(posted):
        received = theirs.receive(Deadline(0))
        assert received.message["index"] == index
        assert len(received.fds) == index % 3
        close_all(received.fds)
        ours.flush()
    assert ours.events == select.POLLIN
    assert theirs.receive_now() is None
    assert descriptors() == before


def test_a_send_that_gives_up_has_sent_nothing(ends):
    ours, theirs = ends
    big = {"type": "config", "offset": 1, "data": bytes(4096)}
    sent = 0
    with contextlib.suppress(DeadlineExceeded):
        while True:
            ours.send(big, deadline=Deadline(0))
            sent += 1
    for _ in range(sent):
        theirs.receive(Deadline(0))
    assert theirs.receive_now() is None
    ours.send(LIST)
    assert theirs.receive().message == LIST


def test_closing_drops_the_copies_of_descriptors_that_were_never_sent(sockets):
    before = descriptors()
    ours = Channel(sockets[0])
    with EventFd.create() as event:
        while ours.events == select.POLLIN:
            ours.post(ATTACHED, [event.fileno()])
    assert descriptors() > before
    ours.close()
    sockets[1].close()
    assert descriptors() == before - 2


# -- a peer that means harm --------------------------------------------------------------------------------------------


@pytest.mark.fault("F09")
@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(8),
        b"\0\0\0\x80" + bytes(4),
        frame(LIST)[:-1],
        frame(LIST) + b"x",
        frame({"type": "kill"}),
        struct.pack("<IHH", 65529, 1, 0) + bytes(65529),
        bytes(100_000),
    ],
    ids=lambda data: f"{len(data)} bytes {data[:8].hex()}",
)
def test_a_frame_that_is_none_is_refused(hostile, data):
    peer, victim = hostile
    peer.send(data)
    with pytest.raises(ProtocolError):
        victim.receive_now()


def test_an_empty_packet_is_the_end(hostile):
    peer, victim = hostile
    peer.send(b"")
    with pytest.raises(PeerGone):
        victim.receive_now()


@pytest.mark.fault("F10")
@pytest.mark.parametrize(
    ("data", "count"),
    [
        (frame(ATTACHED, fds=1), 2),  # more than announced
        (frame(ATTACHED, fds=2), 1),  # fewer
        (frame(ATTACHED), 1),  # unannounced
        (frame(LIST, fds=1), 1),  # with a message that brings none
        (frame(ATTACHED, fds=3), 3),  # more than this side takes
        (frame(ATTACHED, fds=253), 253),
        (b"garbage", 2),
        (b"\0", 253),
        (bytes(70_000), 2),
    ],
    ids=lambda value: value if isinstance(value, int) else value[:8].hex(),
)
def test_unexpected_descriptors_are_closed(hostile, data, count):
    peer, victim = hostile
    before = descriptors()
    with EventFd.create() as event:
        send_with(peer, data, [event.fileno()] * count)
    with pytest.raises(ProtocolError):
        victim.receive_now()
    assert descriptors() == before


@pytest.mark.fault("F10")
def test_a_side_that_expects_no_descriptors_never_opens_one(sockets):
    with Channel(sockets[1]) as server, EventFd.create() as event:
        send_with(sockets[0], frame(ATTACHED, fds=1), [event.fileno()])
        before = descriptors()
        with pytest.raises(ProtocolError, match="lost"):
            server.receive_now()
        assert descriptors() == before


@pytest.mark.fault("F10", "E07")
def test_descriptors_above_the_limit_of_this_process_are_an_error_that_leaves_nothing_open(hostile):
    peer, victim = hostile
    with EventFd.create() as event:
        send_with(peer, frame(ATTACHED, fds=2), [event.fileno()] * 2)
        before = descriptors()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(event.fileno())
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, hard))
        try:
            with pytest.raises(ProtocolError, match="lost"):
                victim.receive_now()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert descriptors() == before


@pytest.mark.fault("F10")
def test_a_stray_descriptor_of_the_wrong_type_is_refused_by_whoever_adopts_it(ends):
    ours, theirs = ends
    before = descriptors()
    with tempfile.TemporaryFile() as file:
        ours.send(ATTACHED, [file.fileno()])
        (fd,) = theirs.receive().fds
    with pytest.raises(ProtocolError):
        EventFd.adopt(fd)
    assert descriptors() == before


# -- who is there ------------------------------------------------------------------------------------------------------


@pytest.fixture
def public_folder():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_the_kernel_says_who_is_at_the_other_end(sockets):
    assert peer_credentials(sockets[0]) == (os.getpid(), os.getuid(), os.getgid())
    assert check_peer(sockets[0]).pid == os.getpid()


@pytest.mark.fault("F01")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_not_trusted(public_folder):
    path = public_folder / "socket"
    program = (
        "import os, socket, sys\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "peer.connect(sys.argv[1])\n"
        "peer.recv(1)\n"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        path.chmod(0o777)
        listener.listen()
        child = subprocess.Popen([sys.executable, "-c", program, str(path)])
        connection, _ = listener.accept()
        with connection, pytest.raises(UntrustedPeer, match="65534") as caught:
            check_peer(connection)
        assert caught.value.facts["pid"] == child.pid
        assert child.wait(SOON) == 0


@pytest.mark.fault("F01")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_root_is_no_exception(sockets):
    os.seteuid(65534)
    try:
        with pytest.raises(UntrustedPeer):
            check_peer(sockets[0])
    finally:
        os.seteuid(0)
