"""The asyncio face of both roles: the same queues and the same doorbells, awaited instead of slept on.

    async with await AsyncDriver.attach("demo", "echo0") as driver:
        answers = await asyncio.gather(*(driver.request(word, 64) for word in words))

    async with await AsyncDevice.attach("demo", "echo0") as device:
        async for chain in device:
            device.complete(chain, chain.writer().write(chain.reader().read()))

Doorbells, the control connection and the peer's pidfd are descriptors, and the event loop watches them; there is no
thread and no polling. Regions that use semaphores have nothing to watch, so they are refused here. Attaching waits in a
thread of the loop's executor; everything after that stays in the loop.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from vqshm.errors import DeadlineExceeded, InvalidState, OutOfBuffers, PeerViolation, QueueFull, VqshmError
from vqshm.host.device import Device
from vqshm.host.driver import Driver

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from vqshm.host.endpoint import Endpoint
    from vqshm.host.request import Request
    from vqshm.host.system.liveness import Watch
    from vqshm.notify import Notifier
    from vqshm.ring import DescriptorChain

_TURN: Final = 64  # chains a busy device hands out before other tasks have their turn

Attached = TypeVar("Attached", Driver, Device)


class _Ears:
    """Calls `listener` in the running loop whenever a doorbell rings, the coordinator speaks or the peer ends."""

    def __init__(self, endpoint: Endpoint, bells: list[Notifier], listener: Callable[[], None]) -> None:
        if endpoint.notify != "eventfd":
            endpoint.close()
            raise InvalidState(f"asyncio needs descriptors to watch, and {endpoint.region!r} uses semaphores")
        self._loop = asyncio.get_running_loop()
        self._endpoint = endpoint
        self._listener = listener
        self._watched: set[int] = set()
        self._peer = -1
        self._watch: Watch | None = None  # whose descriptor that is: its number may be another one's by now
        for bell in bells:
            self._add(bell.fileno(), self._on_bell, bell)
        self._add(endpoint.fileno(), self._on_control)
        self.follow_peer()

    def follow_peer(self) -> None:
        """Watch the process that is the peer now."""
        fd, watch = self._endpoint.peer_fileno(), self._endpoint._watch  # noqa: SLF001 - half an endpoint
        if fd != self._peer or watch is not self._watch:
            self._remove(self._peer)
            self._peer, self._watch = fd, watch
            self._add(fd, self._on_peer)

    def close(self) -> None:
        """Watch nothing any more."""
        for fd in list(self._watched):
            self._remove(fd)

    def _add(self, fd: int | None, callback: Callable[..., None], *args: Any) -> None:
        if fd is not None and fd >= 0:
            self._loop.add_reader(fd, callback, *args)
            self._watched.add(fd)

    def _remove(self, fd: int) -> None:
        if fd in self._watched:
            self._watched.discard(fd)
            self._loop.remove_reader(fd)

    def _on_bell(self, bell: Notifier) -> None:
        bell.clear()
        self._listener()

    def _on_control(self) -> None:
        try:
            self._endpoint.hear()
        finally:
            if self._endpoint.coordinator_gone:
                self._remove(self._endpoint.fileno())
            self.follow_peer()
            self._listener()

    def _on_peer(self) -> None:
        self._remove(self._peer)  # it stays readable for ever
        self._listener()


class AsyncDriver:
    """A driver in an event loop: any number of requests at a time, from any number of tasks."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._futures: dict[Request, asyncio.Future[None]] = {}
        self._held: set[Request] = set()  # delivered, until their tasks have read and released them
        self._room = asyncio.Event()
        self._ears = _Ears(driver, driver.calls, self._pump)

    @classmethod
    async def attach(cls, region: str, device: str | None = None, **options: Any) -> Self:
        """As `Driver.attach`; also raises InvalidState for a region that uses semaphores."""
        return cls(await _in_thread(partial(Driver.attach, region, device, **options)))

    async def request(
        self,
        readable: Any,
        writable: int | Sequence[int] = 0,
        *,
        queue: int = 0,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> bytes:
        """As `Driver.request`, without holding up the loop.

        A cancelled request is released when the device returns it. The timeout, as everywhere here, ends in
        DeadlineExceeded, which says who is waited for.
        """
        try:
            async with asyncio.timeout(timeout):
                request = await self._submit(*self.driver.chain_of(readable, writable), queue)
                self.driver.kick(queue)
                future = self._futures[request] = asyncio.get_running_loop().create_future()
                self._pump()
                try:
                    await future
                    return request.output()
                finally:
                    self._release(request)
        except TimeoutError:
            raise DeadlineExceeded(self.driver.stalled(), in_flight=self.driver.in_flight) from None

    async def _submit(self, pieces: Sequence[Any], sizes: Sequence[int], queue: int) -> Request:
        while True:
            try:
                return self.driver.submit(pieces, sizes, queue=queue)
            except (QueueFull, OutOfBuffers):
                if not self.driver.ports[queue].in_flight and not self._held:
                    raise  # nothing will ever come back to make room
            self._room.clear()
            self.driver.kick(queue)
            self._pump()
            await self._room.wait()

    def _pump(self) -> None:
        """Hand out what the device returned, ask to be called for the next, and fail what will not come any more."""
        again = True
        while again:
            try:
                while (request := self.driver.reap()) is not None:
                    self._deliver(request)
                again = self.driver.arm()
            except PeerViolation:
                continue  # that queue is broken from now on: its requests fail below, those of the others go on
        for port in self.driver.ports:
            try:
                self.driver.check(port.number)
            except VqshmError as error:
                self._fail(error, port.number)
        while (request := self.driver.reap()) is not None:  # those that failed with their device
            self._deliver(request)

    def _deliver(self, request: Request) -> None:
        future = self._futures.pop(request, None)
        self._room.set()  # in the queue; in the pool there is when it is released
        self._held.add(request)
        if future is None or future.done():
            self._release(request)
        else:
            future.set_result(None)

    def _release(self, request: Request) -> None:
        """Give the buffers back, unless the device has them."""
        if request in self._held:
            self._held.discard(request)
            request.release()
            self._room.set()

    def _fail(self, error: VqshmError, queue: int | None = None) -> None:
        """Fail the requests of one queue, or (None) all of them."""
        for request in [request for request in self._futures if queue in {None, request.queue}]:
            future = self._futures.pop(request)
            if not future.done():
                future.set_exception(error)
        self._room.set()

    async def close(self) -> None:
        """Give the role back; requests that still wait fail with InvalidState."""
        self._ears.close()
        self._fail(InvalidState("the driver was closed"))
        self.driver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncDevice:
    """A device in an event loop.

    `async for chain in device` ends when its driver leaves; iterate again for the next one.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._news = asyncio.Event()
        self._turn = 0
        self._ears = _Ears(device, device.kicks, self._news.set)

    @classmethod
    async def attach(cls, region: str, device: str | None = None, **options: Any) -> Self:
        """As `Device.attach`; also raises InvalidState for a region that uses semaphores."""
        return cls(await _in_thread(partial(Device.attach, region, device, **options)))

    async def wait_driver(self) -> int:
        """Wait until a driver has set DRIVER_OK; the negotiated features.

        Raises InvalidState when the region closes.
        """
        while True:
            self._news.clear()
            self.device.hear()
            self._ears.follow_peer()
            if self.device.running:
                return self.device.features
            if self.device.closing or self.device.coordinator_gone:
                raise InvalidState(f"no driver will come: region {self.device.region!r} is closing")
            await self._news.wait()

    def complete(self, chain: DescriptorChain, written: int = 0) -> None:
        """As `Device.complete`."""
        self.device.complete(chain, written)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DescriptorChain:
        if not self.device.running:
            await self.wait_driver()
        self._turn += 1
        if not self._turn % _TURN:
            await asyncio.sleep(0)
        while True:
            chain = self.device.pop()
            if chain is not None:
                return chain
            if self.device.leaving or self.device.peer_gone:
                self.device.let_go()
                self._ears.follow_peer()
                raise StopAsyncIteration
            self._news.clear()
            if not self.device.ready() and not self.device.arm():
                await self._news.wait()

    async def close(self) -> None:
        """Give the role back."""
        self._ears.close()
        self.device.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _in_thread(attach: Callable[[], Attached]) -> Attached:
    """Attach in a thread of the loop's executor. Whoever is cancelled meanwhile leaves no role taken."""
    attaching = asyncio.get_running_loop().run_in_executor(None, attach)
    try:
        return await asyncio.shield(attaching)
    except asyncio.CancelledError:
        attaching.add_done_callback(_close_unwanted)
        raise


def _close_unwanted(attaching: asyncio.Future[Attached]) -> None:
    if not attaching.cancelled() and attaching.exception() is None:
        attaching.result().close()
