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

    from vqshm.lane.inlet import Loan
    from vqshm.memory.guest import GuestMemory as Memory
    from vqshm.notify import Notifier
    from vqshm.ring.layout import SplitLayout
    from vqshm.ring.tries import Tries


class ResumingInlet(Inlet):
    """An inlet with an in-flight area at guest address `area`; `options` are those of an `Inlet`.

    `tries`: where to count how often each message was received.
    """

    __slots__ = ("_last",)

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
        self._most_held = 1  # a view that is given back is done with: that is shown at once

    def restart(self, event_idx: bool, indirect: bool) -> None:
        """As `Inlet.restart`: nothing is in flight."""
        self._forget(event_idx, indirect)
        self.begin()

    def take_over(self, event_idx: bool, indirect: bool) -> int:
        """Go on where another receiver stopped, with these features: how many messages come again.

        What was received as often as may be is given up, and the sender is to be called.
        Raises InvalidInflight, InvalidUsedRingIndex for what no receiver leaves behind.
        """
        self._forget(event_idx, indirect)
        return self.resume()

    def _forget(self, event_idx: bool, indirect: bool) -> None:
        Inlet.restart(self, event_idx, indirect)
        self._last.clear()
        self._replays.clear()
        self.attempts = 1

    def available(self) -> int:
        """Messages that can be received now, those that come again among them."""
        return self._look() + len(self._replays)

    # -- receiving -----------------------------------------------------------------------------------------------------

    def recv(self, timeout: float | None = None) -> bytes:
        """As `Inlet.recv`; the message is done with when the next one is asked for."""
        self._begin(timeout)
        return self._take_bytes()

    def recv_many(self, limit: int, timeout: float | None = None) -> list[bytes]:
        """As `Inlet.recv_many`; a message that comes again comes alone."""
        if limit < 1:
            raise ValueError(f"cannot receive {limit} messages: at least 1")
        self._begin(timeout)
        messages: list[bytes] = []
        enough = self.bytes_in + self.limit
        count = 1 if self._replays else min(limit, self._look())
        try:
            while count > 0 and self.bytes_in < enough:
                messages.append(self._take_bytes())
                count -= 1
        except PeerViolation:
            if not messages:
                raise
        except BaseException:
            self._put_back()
            raise
        return messages

    def recv_view(self, timeout: float | None = None) -> Loan:
        """As `Inlet.recv_view`; the message is done with when it is given back."""
        self._begin(timeout)
        head = self._next_head()
        try:
            return self._lend(head)
        except BaseException:
            self._last.append(head)
            self._put_back()
            raise

    def done(self) -> None:
        """What was received is done with: it never comes again. Views that are out are not meant."""
        if self._last:
            if self.ready:  # else the session is over
                for head in self._last:
                    if self._shadow[head]:  # else an interrupted call has come that far
                        self._return(head, 0)
                        self._held += 1
            self._last.clear()
        self.tell()

    # -- the steps of receiving ----------------------------------------------------------------------------------------

    def _begin(self, timeout: float | None) -> None:
        """Whoever asks for the next message is done with the last. Return when there is one."""
        if not self._waiting:
            self.done()
        if not self._replays or self._waiting or not self.ready:
            self._await_message(timeout)
        else:
            Deadline(timeout)  # raises

    def _next_head(self) -> int:
        """Take the next message, and fetch it if it is a `single` buffer: its head."""
        if self._replays:
            head: int = self._replays[len(self._replays) - 1]
            self.single = self._fetch(head)
            self.attempts = self._attempt(head)
            self._replays.pop()
            return head
        self.attempts = 1
        return self.pop_single()

    def _take_bytes(self) -> bytes:
        """Take a message, which is there, as bytes."""
        head = self._next_head()
        self._last.append(head)
        try:
            if self.single and not self.writable:
                data = atomic.copy(self._bytes, self.addr - self._low, self.length)
            else:
                data = self.chain(head).reader().read()
        except BaseException:
            self._put_back()
            raise
        self.messages += 1
        self.bytes_in += len(data)
        return data

    def _put_back(self) -> None:
        """What this call took, nobody gets: it comes again."""
        while self._last:
            self._replays.append(self._last.pop())
