# cython: nonecheck=False, initializedcheck=False
"""Resuming inlet: the end where messages come out of a lane that outlives its receivers.

What a receiver takes it writes down in the in-flight area (`ring/inflight`), so that its successor finds it. A message
goes back to the sender only when whoever received it is done with it, and not as soon as it is copied:

    recv, recv_many     when the next one is asked for, by whatever call, or at `done` or `close`
    recv_view, serve    when the view is given back

So at every instant each message is in one of three states, of which used.idx and the area tell:

    not taken           a successor receives it as if nothing had happened
    taken, not done     a successor receives it again, `replayed`: nobody knows what was done with it before
    done                nobody receives it again

What was taken comes first, in the order of taking, one by one. A message is received at least once, and a second time
only after a death, and flagged; where there is a limit, only so often (`ring/tries`), then it goes back undone. That
costs some 100 nanoseconds a message: each is shown to the sender on its own.

A call that is interrupted has received nothing: what it took is put back, and comes again without a flag, as nobody has
seen it. What it said about the messages before, that they are done with, holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqshm.errors import PeerViolation
from vqshm.lane.inlet import Inlet
from vqshm.memory import atomic
from vqshm.notify.wait import Deadline
from vqshm.ring.inflight import Inflight

if TYPE_CHECKING:
    from typing import Any

    from vqshm.lane.loan import Loan
    from vqshm.memory.guest import GuestMemory as Memory
    from vqshm.notify import Notifier
    from vqshm.ring.layout import SplitLayout
    from vqshm.ring.tries import Tries


class ResumingInlet(Inlet):
    """An inlet with an in-flight area at guest address `area`; `options` are those of an `Inlet`.

    `tries`: where to count how often each message was received.
    """

    __slots__ = ("_last", "_tried")

    def __init__(
        self,
        memory: Memory,
        layout: SplitLayout,
        bell: Notifier,
        area: int,
        *,
        tries: Tries | None = None,
        **options: Any,
    ) -> None:
        super().__init__(memory, layout, bell, inflight=Inflight(memory, area, layout.size, tries), **options)
        self._last: list[int] = []  # heads of the messages that were received last, and are not done with
        self._tried: dict[int, int] = {}  # of those that a receiver that died had taken: for which time, 0 if not yet
        self._most_held = 1  # a view that is given back is done with: that is shown at once

    def restart(self, event_idx: bool, indirect: bool, *, ready: bool = True) -> None:
        """As `Inlet.restart`: nothing is in flight."""
        self._forget(event_idx, indirect, ready=ready)
        self.begin()

    def take_over(self, event_idx: bool, indirect: bool, *, ready: bool = True) -> int:
        """Go on where another receiver stopped, with these features: how many messages come again.

        What was received as often as may be is given up, and the sender is to be called.
        Raises InvalidInflight, InvalidUsedRingIndex for what no receiver leaves behind.
        """
        self._forget(event_idx, indirect, ready=ready)
        count = self.resume()
        self._tried = dict.fromkeys(self._replays, 0)
        return count

    def _forget(self, event_idx: bool, indirect: bool, *, ready: bool) -> None:
        Inlet.restart(self, event_idx, indirect, ready=ready)
        self._last.clear()
        self._tried.clear()
        self.attempts = 1

    def available(self) -> int:
        """Messages that can be received now, those that come again among them."""
        if self._is_torn():
            self._count_left()
        return self._look() + len(self._replays)

    # -- receiving -----------------------------------------------------------------------------------------------------

    def recv(self, timeout: float | None = None) -> bytes:
        """As `Inlet.recv`; the message is done with when the next one is asked for."""
        self._begin(timeout)
        head = self._next_head()
        data = self._copy_message(head)
        heads = self._open()
        heads.append(head)
        self._take(data)
        self._last = heads
        if atomic.INTERRUPTIBLE:
            self._got = None
        return data

    def recv_many(self, limit: int, timeout: float | None = None) -> list[bytes]:
        """As `Inlet.recv_many`; a message that comes again comes alone."""
        if limit < 1:
            raise ValueError(f"cannot receive {limit} messages: at least 1")
        self._begin(timeout)
        messages: list[bytes] = []
        enough = self.bytes_in + self.limit
        count = 1 if self._replays else min(limit, self._look())
        heads = self._open()
        try:
            while count > 0 and self.bytes_in < enough:
                head = self._next_head()
                data = self._copy_message(head)
                messages.append(data)
                heads.append(head)
                self._take(data)
                count -= 1
        except PeerViolation:
            if not messages:
                raise
        except BaseException:
            if not atomic.INTERRUPTIBLE:  # else the next call does it
                self._put_all_back(heads)
            raise
        self._last = heads
        if atomic.INTERRUPTIBLE:
            self._got = None
        return messages

    def recv_view(self, timeout: float | None = None) -> Loan:
        """As `Inlet.recv_view`; the message is done with when it is given back."""
        self._begin(timeout)
        loan = self._lend(self._next_head())
        if atomic.INTERRUPTIBLE:
            self._from = self._position()
            self._got = [loan]
        self._pass()
        return self._hand_out(loan)

    def done(self) -> None:
        """What was received is done with: it never comes again. Views that are out are not meant."""
        if self._is_torn():
            self._count_left()  # what nobody got is not done with
        if atomic.INTERRUPTIBLE and self._giving == self.next_used:
            self._mend()
        if self._last:
            if self.ready:  # else the session is over
                for head in self._last:
                    if self._shadow[head]:  # else an interrupted call has come that far
                        self._return(head, 0)
            self._last.clear()
        self.tell()

    # -- the steps of receiving ----------------------------------------------------------------------------------------

    def _begin(self, timeout: float | None) -> None:
        """Whoever asks for the next message is done with the last. Return when there is one."""
        if self._waiting:
            self._check_alone()
        self.done()
        if not self._replays or not self.ready:
            self._await_message(timeout)
        else:
            Deadline(timeout)  # raises

    def _next_head(self) -> int:
        """The next message, which is there, and is the next one until `_pass`: its head."""
        last = len(self._replays) - 1
        if last >= 0:
            head: int = self._replays[last]
            if self._tried.get(head) == 0:
                self._tried[head] = self._attempt(head)
            self.attempts = self._tried.get(head, 1)
            return head
        head = self._claim()
        if self._tried:
            self._tried.pop(head, None)
        self.attempts = 1
        return head

    def _pass(self) -> None:
        """Take it."""
        last = len(self._replays) - 1
        if last >= 0:
            del self._replays[last]
        else:
            self.next_avail = (self.next_avail + 1) & 0xFFFF

    def _take(self, data: bytes) -> None:
        """Take it, as bytes."""
        self.messages += 1
        self.bytes_in += len(data)
        self._pass()

    def _open(self) -> list[int]:
        """A list for the heads that are being taken. They are put back unless the list becomes `_last`."""
        if not atomic.INTERRUPTIBLE:
            return self._last
        heads: list[int] = []
        self._from = self._position()
        self._got = heads
        return heads

    def _put_all_back(self, heads: list[int]) -> None:
        """What this call took, nobody gets: it comes again."""
        while heads:
            self._replays.append(heads.pop())
