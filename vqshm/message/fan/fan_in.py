"""Fan-in: one process receives from many: a lane from each sender, no lock and no ring that two of them share.

    with Fanin.attach("jobs") as jobs:
        for message in jobs:                            # until every sender that came has left
            ...
        for who in jobs.departed:
            print(who.lane, who.pid, "ended" if who.ended else "left")

Rules
- Lanes have their turn one after the other, up to 16 messages (or about 64 KiB) at a time, so a busy lane keeps none
  from being heard. The order of each sender's messages is kept; between senders there is none.
- What was taken in a turn waits in this process until it is asked for. For its sender it counts as received: `flush`
  returns, and it is lost if this process ends before. `recv_view` takes a single message, in place.
- A sender that leaves or dies is noted in `departed`, after its last message; the others go on, and its lane waits for
  the next one. When all that came have left, EndOfMessages is raised once.
- A sender that breaks a rule breaks its lane: that is raised once, with the lane's name, and the others go on. It
  counts as there until it leaves, because it can reset its lane.
- On a channel with `restart="resume"` nothing is taken ahead, and what was received is done when the next message is
  asked for, as with a `Receiver`: so nothing is lost when this process dies. Threads that share a fan use `recv_view`.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Self

from vqshm.errors import EndOfMessages, InvalidState, NoMessage
from vqshm.lane import serving
from vqshm.message.fan.base import ENDLESS, Fan
from vqshm.message.fan.in_lane import TURN, Copied, Departed, InLane
from vqshm.message.words import GetWords
from vqshm.notify import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vqshm.lane.loan import Loan

_REMEMBERED: Final = 1024  # departures
_LENT_SECONDS: Final = 0.05  # how often it is looked whether the last views of a sender that left were given back


class Fanin(GetWords, Fan["InLane"]):
    """The receiving end of several lanes; see `attach`. Several threads may share it, but for `recv_view`."""

    _ours = "receiver"

    @classmethod
    def attach(cls, region: str, *, timeout: float | None = 5.0, limit: int | None = None) -> Self:
        """Take the first free receiver's place of a channel. Senders may come later: `recv` waits for them.

        `limit`: as of `Receiver.attach`, for each lane. Raises RoleTaken if no place is free, NotFound,
        CoordinatorGone, UntrustedPeer, DeadlineExceeded, ValueError.
        """
        place, lanes = cls._take_place(
            region,
            lambda name, end: InLane.attach(region, name, timeout=end.remaining(), limit=limit),
            Deadline(timeout),
        )
        try:
            return cls(lanes, place)
        except BaseException:
            for lane in reversed(lanes):
                lane.close()
            raise

    def __init__(self, lanes: list[InLane], place: int = 0) -> None:
        super().__init__(lanes, place)
        self._gate = threading.Lock()  # around every look at a lane
        self._backlog: deque[bytes] = deque()  # taken, and not asked for yet
        self._departed: deque[Departed] = deque(maxlen=_REMEMBERED)
        self._turn = 0  # the lane that is looked at next
        self._careful = lanes[0]._careful  # noqa: SLF001 - a lane of ours
        self._undone: list[InLane] = []  # whose messages were received last
        self.attempts = 1  # as `Receiver.attempts`
        for lane in lanes:
            lane.backlog = self._backlog

    @property
    def replayed(self) -> bool:
        """As `Receiver.replayed`."""
        return self.attempts > 1

    # -- receiving -----------------------------------------------------------------------------------------------------

    def recv(self, timeout: float | None = None) -> bytes:
        """The next message of any lane. Waits for it at most `timeout` seconds (None: for ever).

        Raises NoMessage (a QueueEmpty and a TimeoutError), EndOfMessages once all senders that came have left and
        everything was received, the PeerViolation of a sender that breaks a rule, InvalidState, ValueError.
        """
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"a timeout is None or at least 0 seconds, not {timeout}")
        try:
            return self._backlog.popleft()
        except IndexError:
            return self._recv(timeout)

    def recv_many(self, limit: int, timeout: float | None = None) -> list[bytes]:
        """1 to `limit` messages: all that are there, after waiting for the first. Raises as `recv`."""
        if limit < 1:
            raise ValueError(f"cannot receive {limit} messages: at least 1")
        deadline = Deadline(timeout)
        messages: list[bytes] = []
        backlog = self._backlog
        self._enter(deadline)
        try:
            self._finish_last()
            if not backlog:
                messages += self._take(self._await_lane(deadline), limit)
            while len(messages) < limit and not self._careful:
                if backlog:
                    messages.append(backlog.popleft())
                    continue
                lane = self._next_lane()
                if lane is None:
                    break
                messages += lane.take(limit - len(messages))
        except BaseException:
            backlog.extendleft(reversed(messages))  # they were received before whatever that is
            raise
        finally:
            self._gate.release()
        return messages

    def recv_view(self, timeout: float | None = None) -> Loan | Copied:  # type: ignore[override]  # as good as a loan
        """The next message in place, until it is given back: `with fan.recv_view() as view: …`. Raises as `recv`.

        What `recv` had taken before in its turn comes first, as copies.
        """
        deadline = Deadline(timeout)
        self._enter(deadline)
        try:
            self._finish_last()
            if self._backlog:
                return Copied(self._backlog.popleft())
            loan = self._await_lane(deadline).recv_view(0)
            self.attempts = loan.attempts
            return loan
        finally:
            self._gate.release()

    def serve(self, answer: Callable[[memoryview], Any]) -> None:
        """Answer each call, of any lane, with what `answer` makes of its message, until all senders have left.

        What is no call is handed to `answer`, too; its answer then must be empty or None. Raises as `recv`.
        """
        serving.serve(self, answer)

    def __iter__(self) -> Iterator[bytes]:
        """Messages as they come, until all senders have left."""
        return serving.messages(self)

    def done(self) -> None:
        """As `Receiver.done`."""
        self._enter(Deadline(None))
        try:
            self._finish_last()
            for lane in self._every:
                lane.tell()
        finally:
            self._gate.release()

    # -- figures -------------------------------------------------------------------------------------------------------

    @property
    def departed(self) -> list[Departed]:
        """The senders that left or died, the latest last; at most 1024 of them."""
        return list(self._departed)

    @property
    def present(self) -> dict[str, int]:
        """The senders that are there: their pids, by lane."""
        return {lane.lane: lane.peer.pid for lane in self._every if lane.present and lane.peer is not None}

    def qsize(self) -> int:
        """Messages that are there now."""
        return len(self._backlog) + sum(lane.qsize() for lane in self._every)

    def empty(self) -> bool:
        """Whether no message is there now."""
        return not self.qsize()

    @property
    def counts(self) -> dict[str, int]:
        """As those of a receiver, of all lanes together; messages count when they are taken."""
        every = [lane.counts for lane in self._every]
        return {key: sum(counts[key] for counts in every) for key in every[0]} | {"waits": self._waits}

    # -- taking --------------------------------------------------------------------------------------------------------

    def _recv(self, timeout: float | None) -> bytes:
        """As `recv`, when nothing was taken before."""
        backlog = self._backlog
        deadline: Deadline | None = None
        while True:
            if deadline is not None:
                self._enter(deadline)
            elif not self._gate.acquire(blocking=False):
                deadline = Deadline(timeout)
                continue
            try:
                self._finish_last()
                if not backlog:
                    lane = self._next_lane()
                    if lane is None or self._armed or self._ears.given_out:
                        lane = self._await_lane(deadline or Deadline(timeout), lane)
                    backlog.extend(self._take(lane, 1 if self._careful else TURN))
                try:
                    return backlog.popleft()
                except IndexError:  # another thread was quicker
                    deadline = deadline or Deadline(timeout)
            finally:
                self._gate.release()

    def _take(self, lane: InLane, limit: int) -> list[bytes]:
        """As `InLane.take`; note whose messages are to be done with."""
        if self._careful:
            self._undone.append(lane)
        messages = lane.take(limit)
        self.attempts = lane.attempts
        return messages

    def _finish_last(self) -> None:
        """Who asks for the next message is done with the last."""
        while self._undone:
            self._undone[-1].finish()
            self._undone.pop()

    def _enter(self, deadline: Deadline) -> None:
        """Keep other threads out."""
        left = deadline.remaining()
        if not self._gate.acquire(timeout=-1 if left is None else left):
            raise NoMessage(f"{self.region}: no message came in time; another thread waits for the next one")

    def _next_lane(self) -> InLane | None:
        """The next lane in turn that has a message. Raises the PeerViolation of the one that breaks a rule."""
        lanes = self._every
        turn = self._turn
        for _ in lanes:
            lane = lanes[turn]
            turn += 1
            if turn == len(lanes):
                turn = 0
            self._turn = turn
            if lane.has_message():
                return lane
        return None

    def _await_lane(self, deadline: Deadline, lane: InLane | None = None) -> InLane:
        """The next lane in turn that has a message, once there is one: `lane`, if it is known. Raises as `recv`."""
        lane = lane or self._next_lane()
        if lane is None:
            self._check_usable()
            now = deadline.expired
            if not now:
                for each in self._every:
                    each.tell()  # who waits for room shall not wait for us
            if now and not self._ears.may_glance():
                raise self._no_message()
            if not now and self._look(self._any_message):
                lane = self._next_lane()
        lane = lane or self._sleep_for_lane(deadline)
        if self._armed:
            self._armed = False
            for each in self._every:
                each.disarm()
        self._ears.remember_work()
        return lane

    def _any_message(self) -> bool:
        return any(lane.has_message() for lane in self._every)

    def _sleep_for_lane(self, deadline: Deadline) -> InLane:
        """As `_await_lane`, when there was none at first sight."""
        late, news = 0, True
        while True:
            busy = self._notice()
            lane = self._next_lane()
            if lane is not None:
                return lane
            over = not busy and self._is_over()
            self._armed = True
            if any([each.arm() for each in self._every]):  # noqa: C419 - all of them
                continue
            if over and not news:
                self._finish()
            if late and (not news or late > ENDLESS):
                if news:
                    self._ears.remember_work()  # it may have been the last to leave, and nobody would ring again
                raise self._no_message()
            late += deadline.expired
            left = deadline.remaining()
            if any(each.let_go_later for each in self._every):
                left = _LENT_SECONDS if left is None else min(left, _LENT_SECONDS)
            news = self._sleep(0 if over or late else left)

    def _notice(self) -> bool:
        """Find out who came and who left: whether any sender is there."""
        for lane in self._every:
            departed = lane.notice()
            if departed is not None:
                self._departed.append(departed)
        return any(lane.present for lane in self._every)

    def _is_over(self) -> bool:
        """Whether nobody is there, and to wait for somebody is either not wanted or in vain."""
        return any(lane.came for lane in self._every) or all(lane.deserted for lane in self._every)

    def _finish(self) -> None:
        """Nobody is there, and that was looked at twice: say so."""
        if not any(lane.came for lane in self._every):
            raise InvalidState(f"no sender will come: region {self.region!r} is closing")
        for lane in self._every:
            lane.came = False
        last = self._departed[-1] if self._departed else Departed("", 0, False)  # noqa: FBT003 - it has a name
        raise EndOfMessages(
            f"{self.region}: every sender that came has left, the last of them process {last.pid}, and everything they "
            "sent was received",
            pid=last.pid,
            ended=last.ended,
        )

    def _no_message(self) -> NoMessage:
        there = [f"{lane}: process {pid}" for lane, pid in self.present.items()]
        who = f"{len(there)} senders are there ({', '.join(there)})" if there else "there is no sender"
        return NoMessage(f"{self.region}: no message came in time; {who}")

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the lanes back; what was taken ahead and not asked for is lost. May be called twice.

        Raises InvalidState while views are out; nothing is closed then.
        """
        if self._gone:
            return
        lent = sum(lane.lent() for lane in self._every)
        if lent:
            raise InvalidState(f"{lent} messages are still looked at in place: release them first")
        if self._left_by_error or self._backlog:  # then what was received last comes again, where that can be
            for lane in self._undone:
                lane._left_by_error = True  # noqa: SLF001 - a lane of ours
        self._hang_up()
        self._backlog.clear()
