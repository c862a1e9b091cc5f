"""Messages in an event loop: the same ends of lanes, awaited instead of slept on.

    async with await AsyncReceiver.attach("frames") as receiver:
        message = await receiver.recv()
        async for message in receiver:                  # until the sender leaves
            ...

    async with await AsyncSender.attach("frames") as sender:
        await sender.send(b"a message")

Both stand in front of an end that exists, too: `AsyncReceiver(Fanin.attach(…))`, `AsyncSender(Fanout.attach(…))`. The
event loop watches the descriptor that `fileno()` gives out; there is no thread and no polling. Attaching alone waits in
a thread of the loop's executor. Channels that use semaphores have no such descriptor, and are refused.

Who is cancelled while it waits has taken nothing and sent nothing: messages are taken and sent between two waits, never
during one. Tasks that wait for the same end are served in the order in which they came. An end that is driven from a
loop must not be used beside it, since who asks also consumes what would wake the others.

Where receivers resume, tasks that share one use `recv_view`: each `recv` tells that the message before it is done,
whichever task received that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from vqshm.errors import EndOfMessages, InvalidState, NoMessage, NoRoom, QueueBroken, VqshmError
from vqshm.message.fan import Fanin, Fanout
from vqshm.message.receiver import Receiver
from vqshm.message.sender import Sender
from vqshm.notify import Deadline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from types import TracebackType

_TURN: Final = 64  # messages after which other tasks have their turn

Port = TypeVar("Port", bound="Receiver | Fanin | Sender | Fanout")
Result = TypeVar("Result")


class _AsyncEnd(Generic[Port]):
    """An end that is awaited."""

    def __init__(self, end: Port) -> None:
        self.end = end
        self._fd = end.fileno()
        self._turn = asyncio.Lock()  # who waits, waits in line
        self._waiter: asyncio.Future[None] | None = None
        self._done = 0

    async def _do(self, attempt: Callable[[], Result], timeout: float | None) -> Result:  # noqa: ASYNC109
        """The result of the first attempt that does not find the end empty, or full. Raises what attempts raise."""
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"a timeout is None or at least 0 seconds, not {timeout}")
        self._done += 1
        if not self._done % _TURN:
            await asyncio.sleep(0)  # before the attempt: who is cancelled here has done nothing
        if not self._turn.locked():
            try:
                return attempt()
            except (NoMessage, NoRoom, QueueBroken) as error:
                _check_worth(error, timeout)
        try:
            async with asyncio.timeout(timeout), self._turn:
                while True:
                    try:
                        return attempt()
                    except (NoMessage, NoRoom, QueueBroken) as error:
                        _check_worth(error)
                        await self._news()
        except TimeoutError as error:
            if isinstance(error, VqshmError):
                raise
        try:
            return attempt()  # which says who is waited for
        finally:
            self._wake()  # an attempt may consume what would wake the task that waits

    async def _news(self) -> None:
        """Wait until the end may have work."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        loop.add_reader(self._fd, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            loop.remove_reader(self._fd)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """Give the end back; who waits for it gets InvalidState. Raises as the end's `close`."""
        self.end.close()
        if self._waiter is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
        self._wake()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end._left_by_error = kind is not None  # noqa: SLF001 - an end of ours
        try:
            self.close()
        except InvalidState:
            if kind is None:  # else the block's own exception matters more
                raise


def _check_worth(error: VqshmError, timeout: float | None = None) -> None:
    """Raise it again, unless it is worth waiting: for a message, for room, behind a violation for a sender's reset."""
    if timeout == 0 or (isinstance(error, QueueBroken) and not error.facts.get("awaited", False)):
        raise error


class AsyncReceiver(_AsyncEnd[Receiver | Fanin]):
    """A receiver, or a fan-in, in an event loop."""

    @classmethod
    async def attach(cls, region: str, device: str | None = None, **options: Any) -> Self:
        """As `Receiver.attach`; also raises InvalidState for a channel that uses semaphores."""
        return await _attached(cls, partial(Receiver.attach, region, device, **options))

    async def recv(self, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """As `Receiver.recv`, without holding up the loop."""
        return await self._do(partial(self.end.recv, 0), timeout)

    async def recv_many(self, limit: int, timeout: float | None = None) -> list[bytes]:  # noqa: ASYNC109
        """As `Receiver.recv_many`, without holding up the loop."""
        return await self._do(partial(self.end.recv_many, limit, 0), timeout)

    async def recv_view(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109
        """As `Receiver.recv_view`: `with await receiver.recv_view() as view: …`."""
        return await self._do(partial(self.end.recv_view, 0), timeout)

    @property
    def replayed(self) -> bool:
        """As `Receiver.replayed`: of what this task received last, until it awaits something."""
        return self.end.replayed

    @property
    def attempts(self) -> int:
        """As `Receiver.attempts`, and as `replayed`."""
        return self.end.attempts

    def done(self) -> None:
        """As `Receiver.done`."""
        self.end.done()

    async def serve(self, answer: Callable[[memoryview], Any]) -> None:
        """As `Receiver.serve`; where `answer` returns an awaitable, the next call waits for it, too."""
        while True:
            try:
                loan = await self.recv_view()
            except EndOfMessages:
                return
            with loan as view:
                reply = answer(view)
                if hasattr(reply, "__await__"):
                    reply = await reply
                if reply is not None:
                    loan.reply(reply)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Messages as they come, until the sender has left."""
        while True:
            try:
                message = await self.recv()
            except EndOfMessages:
                return
            yield message


class AsyncSender(_AsyncEnd[Sender | Fanout]):
    """A sender, or a fan-out, in an event loop."""

    def __init__(self, end: Sender | Fanout) -> None:
        super().__init__(end)
        self._asking = asyncio.Lock()  # somebody waits for an answer, whose room is not free before it is taken

    @classmethod
    async def attach(cls, region: str, device: str | None = None, **options: Any) -> Self:
        """As `Sender.attach`; also raises InvalidState for a channel that uses semaphores."""
        return await _attached(cls, partial(Sender.attach, region, device, **options))

    async def send(self, data: Any, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """As `Sender.send`, without holding up the loop. Who is cancelled has sent nothing."""
        await self._do(partial(self.end.send, data, 0), timeout)

    async def send_many(self, messages: Iterable[Any], timeout: float | None = None) -> None:  # noqa: ASYNC109
        """As `Sender.send_many`, `timeout` for each that finds no room.

        Who is cancelled has sent the first of them, as `end.counts` tells; other tasks may send between them.
        """
        rest, done = iter(messages), 0
        while chunk := list(islice(rest, _TURN)):
            while chunk:
                try:
                    sent = await self._do(partial(self._some, chunk), timeout)
                except NoRoom as error:
                    error.facts["sent"] = done
                    raise
                done += sent
                del chunk[:sent]

    def _some(self, messages: list[Any]) -> int:
        """Send as many as there is room for, at least one: how many."""
        try:
            self.end.send_many(messages, 0)
        except NoRoom as error:
            if not error.facts["sent"]:
                raise
            return int(error.facts["sent"])
        return len(messages)

    async def call(self, data: Any, answer_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """As `Sender.call`, without holding up the loop; calls of this sender are made one after the other.

        Who is cancelled may have sent the message, and gets no answer.
        """
        deadline = Deadline(timeout)
        try:
            async with asyncio.timeout(timeout):
                await self._asking.acquire()
        except TimeoutError:
            raise NoMessage("no turn to call in time: an earlier call through this sender has no answer yet") from None
        try:
            call = await self._do(partial(self.end.start_call, data, answer_bytes, 0), deadline.remaining())
            try:
                return await self._do(partial(call.answer, 0), deadline.remaining())
            finally:
                call.forget()
        finally:
            self._asking.release()

    async def flush(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """As `Sender.flush`, without holding up the loop."""
        await self._do(partial(self.end.flush, 0), timeout)


End = TypeVar("End", bound="_AsyncEnd[Any]")


async def _attached(kind: Callable[[Any], End], attach: Callable[[], Any]) -> End:
    """Attach in a thread of the loop's executor. Whoever is cancelled meanwhile leaves no role taken."""
    attaching = asyncio.get_running_loop().run_in_executor(None, attach)
    try:
        end = await asyncio.shield(attaching)
    except asyncio.CancelledError:
        attaching.add_done_callback(_close_unwanted)
        raise
    try:
        return kind(end)
    except BaseException:
        end.close()
        raise


def _close_unwanted(attaching: asyncio.Future[Any]) -> None:
    if not attaching.cancelled() and attaching.exception() is None:
        attaching.result().close()
