"""Ctrl-C, or whatever a signal handler raises, at every bytecode of one who receives: nothing is lost, nothing doubled.

The run is repeated with the exception at the first bytecode of the traced modules, at the second, and so on until a run
ends undisturbed; then the same with a second exception in what is done after the first. Judge is the driver half, which
is not disturbed. Compiled, nothing strikes between two bytecodes; there the exception comes from the doorbell, where
Python code runs.
"""

from __future__ import annotations

import contextlib
import dis

import pytest
from vqshm_harness import Interrupter, Interruption

from vqshm import core
from vqshm.errors import EndOfMessages, InvalidState, NoMessage
from vqshm.lane import inlet as inlet_module
from vqshm.lane import loan as loan_module
from vqshm.lane import resuming, serving
from vqshm.lane.inlet import Inlet
from vqshm.lane.resuming import ResumingInlet
from vqshm.memory import GuestMemory, lent
from vqshm.ring import QueueConfig, SplitLayout, inflight, split_device
from vqshm.ring.inflight import inflight_bytes

pytestmark = pytest.mark.fault("D19")
MODULES = (inlet_module, loan_module, resuming, serving, lent, split_device, inflight)
FILES = frozenset(module.__file__ for module in MODULES)
INTERPRETED = core.kind() == "interpreted"
BASE = 0x1_0000
SIZE = 16
ROOM = 8  # bytes of an answer


class Looking(Interrupter):
    """As `Interrupter`, but in `serving` only where Python looks for signals: a call follows without a look."""

    def _step(self, frame, event, arg):
        if frame.f_code.co_filename == serving.__file__ and event == "opcode" and not looks(frame):
            return self._step
        return super()._step(frame, event, arg)


def looks(frame) -> bool:
    """Whether Python looks for signals before this instruction: it does behind a call, a jump, and at the beginning."""
    before = ""
    for instruction in dis.get_instructions(frame.f_code):
        if instruction.offset == frame.f_lasti:
            return instruction.is_jump_target or before.startswith(("RESUME", "CALL"))
        before = instruction.opname
    raise AssertionError("no such instruction")


class Striker:
    """Interpreted, an interrupter at a bytecode; compiled, one that strikes when the bell rings."""

    def __init__(self, at):
        self.inner = Looking(at, FILES)

    def __enter__(self):
        if INTERPRETED:
            self.inner.__enter__()

    def __exit__(self, kind, *details):
        if INTERPRETED:
            return self.inner.__exit__(kind, *details)
        return kind is Interruption

    def ring(self):
        """The bell is rung."""
        if INTERPRETED or self.inner.struck:
            return
        self.inner.left -= 1
        if self.inner.left <= 0:  # `ring` insists: it rings twice
            self.inner.struck = self.inner.left < 0
            raise Interruption


NOBODY = Striker(1 << 40)


class Bell:
    """Counts how often it was rung."""

    def __init__(self):
        self.rung = 0
        self.striker = NOBODY

    def signal(self):
        self.striker.ring()
        self.rung += 1


class Keeper:
    """There is nothing to wait for: time is up, or, for one who waits for ever, the sender has left."""

    def lie_down(self, _deadline):
        return False

    def sleep(self, deadline):
        if deadline.remaining() is None:
            raise EndOfMessages("nobody sends any more")
        return False

    def get_ready(self, _deadline):
        raise InvalidState("not ready")

    def broke(self, error):
        raise error

    def show_counts(self):
        pass

    def stalled(self):
        return "nobody sends any more"


class World:
    """A driver half that makes messages of every shape, and an inlet."""

    def __init__(self, *, resuming, event_idx):
        self.layout = SplitLayout.at(BASE, SIZE)
        self.area = -(-self.layout.end // 8) * 8
        self.buffers = self.area + inflight_bytes(SIZE)
        self.bytes = bytearray(self.buffers - BASE + 0x1000)
        self.memory = GuestMemory([(BASE, self.bytes)])
        self.config = QueueConfig(self.layout, event_idx=event_idx)
        self.driver = self.config.driver(self.memory)
        self.resuming = resuming
        self.bell = Bell()
        options = {"keeper": Keeper(), "event_idx": event_idx, "area_bytes": 1024}
        if resuming:
            self.inlet = ResumingInlet(self.memory, self.layout, self.bell, self.area, **options)
            self.inlet.restart(event_idx, True)
        else:
            self.inlet = Inlet(self.memory, self.layout, self.bell, **options)
        self.count = 0

    def put(self, data):
        """Data somewhere in the buffers: (address, length)."""
        at = self.buffers + self.count % 8 * 0x200
        self.count += 1
        self.bytes[at - BASE : at - BASE + len(data)] = data
        return at, len(data)

    def offer(self, shapes):
        """Messages of these shapes: {token: message}, in order; and where the answers of calls will be."""
        messages, self.answers = {}, {}
        for shape in shapes:
            text = b"%d " % self.count if shape != "call" else b"%d?" % self.count
            if shape == "single":
                data, token = text * 9, self.driver.add([self.put(text * 9)])
            elif shape == "empty":
                data, token = b"", self.driver.add([], [(self.put(b"")[0], 1)])
            elif shape == "call":
                data, answer = text, self.put(bytes(ROOM))
                token = self.driver.add([self.put(text)], [answer])
                self.answers[token] = answer[0]
            else:
                pieces = [text, b"and ", text * 3]
                data, token = b"".join(pieces), self.driver.add([self.put(piece) for piece in pieces])
            messages[token] = data
        self.driver.enable_notification(1)
        return messages

    def check(self, messages, got, where):
        """Every message was handed out once, in order, and its chain returned once; the driver was called."""
        assert got == list(messages.values()), where
        inlet = self.inlet
        inlet.done()
        assert (inlet.lent, inlet.available()) == (0, 0), where
        assert (inlet.next_avail, inlet.next_used) == (self.driver.avail_idx(), inlet.used_idx()), where
        returned = {}
        while (used := self.driver.reap()) is not None:
            assert used[0] not in returned, where
            returned[used[0]] = used[1]
        assert returned.keys() == messages.keys(), where
        for token, written in returned.items():
            answer = messages[token][::-1][:ROOM] if token in self.answers else b""
            assert written in {0, len(answer)}, where
            if written:
                at = self.answers[token] - BASE
                assert self.bytes[at : at + written] == answer, where
        self.check_area({}, where)
        assert not inlet.replayed, where
        return returned

    def check_area(self, messages, where):
        """A receiver that came now would find each message whose chain was not returned once, in order."""
        if not self.resuming:
            return
        copy = GuestMemory([(BASE, bytearray(self.bytes))])
        successor = self.config.device(copy, inflight=self.area)
        returned = (successor.used_idx() - self.driver.last_used) & 0xFFFF
        heads = [successor.replay().head_index for _ in range(successor.resume())]
        while (head := successor.pop_head()) >= 0:
            heads.append(head)
        assert len(heads) == len(messages) - returned, where
        assert set(heads) <= messages.keys(), where


class Taking:
    """One who receives: what it has got, and the loans that it must still give back."""

    def __init__(self, inlet):
        self.inlet = inlet
        self.got = []
        self.loans = []  # [loan, whether it was read]

    def one(self):
        self.got.append(self.inlet.recv(0))

    def few(self):
        self.got += self.inlet.recv_many(2, 0)

    def many(self):
        self.got += self.inlet.recv_many(99, 0)

    def view(self):
        self.lend()
        self.give_back(0)

    def block(self):
        loan = self.inlet.recv_view(0)
        with loan as view:
            self.got.append(view.tobytes())

    def answer(self):
        loan = self.inlet.recv_view(0)
        with loan as view:
            self.got.append(view.tobytes())
            if loan.room > 1:
                loan.reply(self.got[-1][::-1][:ROOM])

    def views(self):
        """Two, given back in the wrong order."""
        self.lend()
        self.lend()
        self.give_back(1)
        self.give_back(0)

    def dropped(self):
        self.lend()
        del self.loans[0]
        self.inlet.tell()

    def turns(self):
        """One of each."""
        self.one()
        self.view()
        self.few()

    def serve(self):
        def answer(view):
            self.got.append(view.tobytes())
            return self.got[-1][::-1][:ROOM] if self.got[-1].endswith(b"?") else None

        self.inlet.serve(answer)
        raise NoMessage

    def loop(self):
        for message in self.inlet:
            self.got.append(message)
        raise NoMessage

    def lend(self):
        self.loans.append([self.inlet.recv_view(0), False])
        self.read(self.loans[-1])

    def read(self, entry):
        if not entry[1]:
            self.got.append(entry[0].view.tobytes())
            entry[1] = True

    def give_back(self, number):
        self.loans[number][0].release()
        del self.loans[number]

    def recover(self):
        """After an interruption: read what was not read, give back what was not given back."""
        for entry in self.loans:
            self.read(entry)
        while self.loans:
            self.give_back(-1)


SHAPES = ["single", "empty", "call", "pieces", "single"]
WAYS = ["one", "few", "many", "view", "block", "answer", "views", "dropped", "turns", "serve", "loop"]


def strikers(second, step):
    """Pairs: at each bytecode, or each so many, and at some bytecode of what follows."""
    number = 0
    while True:
        number += step
        first = Striker(number)
        yield first, Striker(1 + number * 7 % 120) if second else NOBODY
        if not first.inner.struck:
            break
    assert number > (300 if INTERPRETED else 0), "hardly anything was traced"


@pytest.mark.parametrize("resuming", [False, True], ids=["plain", "resuming"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("second", "step", "shapes"),
    [
        pytest.param(False, 29 if INTERPRETED else 1, SHAPES, id="once"),
        pytest.param(False, 3 if INTERPRETED else 1, SHAPES[1:4], id="anywhere", marks=pytest.mark.long),
        pytest.param(True, 3 if INTERPRETED else 1, SHAPES[1:4], id="twice", marks=pytest.mark.long),
    ],
)
def test_an_interrupted_receiver_hands_out_every_message_once(resuming, way, second, step, shapes):
    world = World(resuming=resuming, event_idx=shapes is not SHAPES)
    for first, again in strikers(second, step):
        messages = world.offer(shapes)
        rung = world.bell.rung
        taking = Taking(world.inlet)
        for striker in (first, again, NOBODY):
            world.bell.striker = striker
            with striker, contextlib.suppress(NoMessage):
                if striker is not first:
                    taking.recover()
                while True:
                    getattr(taking, way)()
            world.check_area(messages, first.inner.where)
        taking.recover()
        world.check(messages, taking.got, f"{first.inner.where}, then {again.inner.where}")
        assert world.bell.rung > rung, first.inner.where
