"""What runs in the processes of `soak.py --interrupt`: ends whose calls exceptions of a signal's handler strike.

A timer's handler raises while a call is `inside`, wherever that may be: in C, between two bytecodes, asleep. Python can
lose what a function written in C returned before its caller has it. So here it goes into a list without a step between:
`got.extend(map(receiver.recv, [timeout]))`; then all that is lost, or comes twice, was lost or doubled by vqshm.

A message says its number, with which number its call to `send` or `send_many` began, and which numbers are in doubt: of
calls that were struck, so that all, some or none of their messages were sent. Whatever else is missing is a loss. A
request's answer is the request: each comes once, whether its `submit` was struck or not, unless nobody was offered it.
"""

from __future__ import annotations

import random
import signal
import struct
import zlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from soak_roles import Reporter

    from vqshm import Receiver, Sender

PATIENCE: Final = 0.5  # seconds until a call that waits is looked after
SOONEST, LATEST = 20e-6, 600e-6  # seconds between two strikes
WINDOW: Final = 8  # requests in flight
_HEAD: Final = struct.Struct("<IIH")  # number, first number of the call, numbers in doubt that follow
_END: Final = 0xFFFF_FFFF


class Strike(BaseException):
    """What the handler raises."""


class Wrong(Exception):
    """Something was lost, doubled, changed or out of order."""


class Striker:
    """Strikes the calls made through it, `count` times in all."""

    def __init__(self, count: int, seed: int) -> None:
        self.left = count
        self.done = 0
        self._inside = False
        self._random = random.Random(seed)
        signal.signal(signal.SIGALRM, self._strike)
        self._wind_up()

    def _wind_up(self) -> None:
        if self.left:
            signal.setitimer(signal.ITIMER_REAL, self._random.uniform(SOONEST, LATEST))

    def _strike(self, _number: int, _frame: object) -> None:
        hit, self._inside = self._inside, False
        if hit and self.left:
            self.left -= 1
            self.done += 1
        self._wind_up()
        if hit:
            raise Strike

    def call(self, function: Callable[..., object], *args: Any) -> bool:
        """Call it; whether it was struck, perhaps when all was done."""
        try:
            self._inside = True
            function(*args)
            self._inside = False
        except Strike:
            return True
        finally:
            self._inside = False
        return False


# -- a lane ------------------------------------------------------------------------------------------------------------


def send(reporter: Reporter, order: dict[str, Any]) -> None:
    """Send until enough strikes were made, then say so in a last message."""
    from vqshm import Sender  # noqa: PLC0415 - this role's

    pick = random.Random(order["seed"])
    number, doubt = 0, list[int]()
    with Sender.attach(order["region"], timeout=60.0) as sender:
        striker = Striker(order["strikes"], order["seed"])
        while striker.left:
            count = pick.choice((1, 1, 1, 5, 30))
            messages = [message(number + each, number, doubt, pick) for each in range(count)]
            if striker.call(sending(sender, count, pick), messages):
                doubt += range(number, number + count)
            else:
                doubt.clear()
            number += count
            if len(doubt) > 200:  # they have to be told
                sender.send(message(number, number, doubt, pick))
                number, doubt = number + 1, []
            if not number % 7:
                striker.call(sender.flush, PATIENCE)
            if reporter.due():
                reporter.say(strikes=striker.done, messages=number)
        sender.send(message(_END, number, doubt, pick))
        sender.flush(60)
        reporter.say(strikes=striker.done, messages=number, counts=sender.counts, done=True)


def sending(sender: Sender, count: int, pick: random.Random) -> Callable[[list[bytes]], None]:
    """A way to send so many messages."""

    def reserve(messages: list[bytes]) -> None:
        (data,) = messages
        with sender.reserve(len(data)) as view:
            view[:] = data

    if count > 1:
        return sender.send_many
    return pick.choice((reserve, lambda messages: sender.send(messages[0])))


def message(number: int, first: int, doubt: list[int], pick: random.Random) -> bytes:
    """One message."""
    head = _HEAD.pack(number, first, len(doubt)) + struct.pack(f"<{len(doubt)}I", *doubt)
    body = head + pick.randbytes(pick.randrange(200))
    return body + zlib.crc32(body).to_bytes(4, "little")


class Book:
    """What has come so far."""

    def __init__(self) -> None:
        self.next = 0
        self.missing: set[int] = set()
        self.count = 0
        self.ended = False

    def enter(self, data: bytes) -> None:
        """One more message. Raises Wrong."""
        if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise Wrong(f"behind message {self.next - 1}: {len(data)} bytes with a wrong CRC")
        number, first, count = _HEAD.unpack_from(data)
        doubt = set(struct.unpack_from(f"<{count}I", data, _HEAD.size))
        self.ended = number == _END
        number = first if self.ended else number
        if number < self.next:
            raise Wrong(f"message {number} comes when {self.next} is the next one")
        self.missing |= set(range(self.next, number))
        lost = {each for each in self.missing if each < first} - doubt
        if lost:
            raise Wrong(f"message {number} came, and {sorted(lost)} were sent and did not")
        self.missing = {each for each in self.missing if each >= first}
        self.next = number + 1
        self.count += 1


def receive(reporter: Reporter, order: dict[str, Any]) -> None:
    """Receive in all ways until the last message, struck all the while; what came must be what was sent."""
    from vqshm import Receiver  # noqa: PLC0415 - this role's

    pick, book = random.Random(order["seed"]), Book()
    with Receiver.attach(order["region"], timeout=60.0) as receiver:
        striker = Striker(order["strikes"] * 100, order["seed"])
        while not book.ended:
            for data in received(receiver, striker, pick):
                book.enter(data)
            if reporter.due():
                reporter.say(strikes=striker.done, messages=book.count)
        reporter.say(strikes=striker.done, messages=book.count, counts=receiver.counts, done=True)
        signal.setitimer(signal.ITIMER_REAL, 0)


def received(receiver: Receiver, striker: Striker, pick: random.Random) -> list[bytes]:
    """What one call brings, which may be struck."""
    from vqshm.errors import NoMessage  # noqa: PLC0415 - of the receiver

    got: list[Any] = []
    way = pick.randrange(3)
    try:
        if way == 0:
            striker.call(got.extend, map(receiver.recv, [PATIENCE]))
            return got
        if way == 1:
            striker.call(got.extend, map(receiver.recv_many, [20], [PATIENCE]))
            return [data for batch in got for data in batch]
        striker.call(got.extend, map(receiver.recv_view, [PATIENCE]))
    except NoMessage:
        return []
    messages = []
    for loan in got:
        messages.append(bytes(loan.view))
        striker.call(loan.release)
        loan.release()
    return messages


# -- a device ----------------------------------------------------------------------------------------------------------


def ask(reporter: Reporter, order: dict[str, Any]) -> None:
    """Submit and reap until enough strikes were made; each request is answered once, and right."""
    from vqshm import Driver  # noqa: PLC0415 - this role's

    pick, sure, doubt, got, number = random.Random(order["seed"]), set[int](), set[int](), list[Any](), 0
    with Driver.attach(order["region"], timeout=60.0) as driver:
        striker = Striker(order["strikes"], order["seed"])
        free = driver.ports[0].pool.free
        while striker.left or sure or driver.in_flight:
            if striker.left and driver.in_flight < WINDOW and pick.randrange(2):
                word = number.to_bytes(4, "little") + pick.randbytes(pick.randrange(300))
                struck = striker.call(lambda: driver.submit([word], [len(word)], tag=(number, word)))  # noqa: B023
                (doubt if struck else sure).add(number)
                number += 1
            elif not striker.left or pick.randrange(3):
                striker.call(got.extend, driver.completed(60.0))
            else:
                word = pick.randbytes(50)
                answers: list[bytes] = []
                if not striker.call(lambda: answers.append(driver.request(word, 50, timeout=60.0))):  # noqa: B023
                    check(answers == [word], "a request got another one's answer")
            for request in got:
                mine, word = request.tag
                check(mine in sure or mine in doubt, f"request {mine} was answered twice, or never made")
                check(request.output() == word, f"request {mine} got another one's answer")
                striker.call(request.release)
                request.release()
                sure.discard(mine)
                doubt.discard(mine)
            got.clear()
            if reporter.due():
                reporter.say(strikes=striker.done, messages=number)
        counts = {"requests": number, "never_made": len(doubt)}
        check(list(driver.completed(0)) == [], "a request is left over")
        check(driver.ports[0].pool.free == free, "buffers were not given back")
        reporter.say(strikes=striker.done, messages=number, counts=counts, done=True)


def check(right: bool, what: str) -> None:  # noqa: FBT001 - as an assertion
    """Raise Wrong unless it is."""
    if not right:
        raise Wrong(what)


def serve(reporter: Reporter, order: dict[str, Any]) -> None:
    """Serve, struck all the while, until the driver has left."""
    from vqshm import Device  # noqa: PLC0415 - this role's

    striker = Striker(order["strikes"] * 100, order["seed"])
    with Device.attach(order["region"], timeout=60.0) as device:
        device.wait_driver(60.0)
        handler = Echo()
        while striker.call(device.serve, handler) and (device.running or not handler.count):
            if reporter.due():
                reporter.say(strikes=striker.done, messages=handler.count)
    signal.setitimer(signal.ITIMER_REAL, 0)
    reporter.say(strikes=striker.done, messages=handler.count, counts={"again": handler.again}, done=True)


class Echo:
    """Answers with what it is asked, and counts what comes again."""

    device_id, features, config = 0x7601, 0, b""

    def __init__(self) -> None:
        self.count = self.again = 0

    def handle(self, chain: Any) -> int:
        """As `Handler.handle`."""
        self.count += not chain.replayed
        self.again += chain.replayed
        return int(chain.writer().write(chain.reader().read()))


ROLES: Final = {"struck_send": send, "struck_receive": receive, "struck_ask": ask, "struck_serve": serve}
