"""Client: a connection to the coordinator; once attached, a process in a role.

What is told to a client never blocks and never raises: one that cannot be told has `failed`, and is dropped when nobody
is in the middle of anything.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any

from vqshm.errors import InvalidState, ProtocolError
from vqshm.host.system.liveness import ProcessId, Watch

if TYPE_CHECKING:
    from vqshm.transport import Channel, Message


class Client:
    """A client that connected as process `pid`, which is what the kernel said."""

    def __init__(self, channel: Channel, pid: int) -> None:
        self.channel = channel
        self.process = ProcessId(pid, 0)
        self.watch: Watch | None = None
        self.role = ""  # none yet
        self.device = -1  # index of the device it has a role in
        self.failed = False
        self.serial = 0  # of the request that is being answered

    @property
    def lagging(self) -> bool:
        """Whether it has not read what it was sent; to be told something once more is no use to it then."""
        return bool(self.channel.events & select.POLLOUT)

    def reply(self, message: Message, fds: tuple[int, ...] = (), serial: int | None = None) -> None:
        """Answer its request, or an earlier one."""
        self._post({**message, "serial": self.serial if serial is None else serial}, fds)

    def event(self, what: str, **facts: Any) -> None:
        """Tell it something it did not ask for."""
        self._post({"type": "event", "what": what, **facts})

    def _post(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        try:
            self.channel.post(message, fds)
        except (OSError, ProtocolError, InvalidState):
            self.failed = True
