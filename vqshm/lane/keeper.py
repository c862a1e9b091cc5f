"""Keeper: whom a lane's end asks about the process on its other side: to sleep until it has done something, or why not.

`Alone` is the keeper that knows of nobody: whoever finds nothing to do is told so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from vqshm.errors import InvalidState

if TYPE_CHECKING:
    from vqshm.errors import VqshmError
    from vqshm.notify.wait import Deadline


class InletKeeper(Protocol):
    """Who knows the process on the other side."""

    def sleep(self, deadline: Deadline) -> bool:
        """Sleep until there is a message, or news that `get_ready` then tells; False at the deadline."""

    def lie_down(self, deadline: Deadline) -> bool:
        """Make the inlet's bed: True if it is to `doze` there, and then to `get_up`. False: `sleep` instead."""

    def get_up(self, deadline: Deadline) -> bool:
        """After a doze that found no message: as `sleep`."""

    def get_ready(self, deadline: Deadline) -> None:
        """Return when messages can come. Raises EndOfMessages, InvalidState, QueueBroken, DeadlineExceeded."""

    def broke(self, error: VqshmError) -> None:
        """The driver broke a rule, and the lane is out of use: tell whom it concerns."""

    def show_counts(self) -> None:
        """Show the counters to whoever watches."""

    def stalled(self) -> str:
        """Who is waited for: for the message of a deadline."""


class OutletKeeper(Protocol):
    """Who knows the process on the other side."""

    def sleep(self, deadline: Deadline, after: int) -> bool:
        """Sleep until about `after` messages were given back, or at least one; False at the deadline.

        Raises PeerGone, PeerViolation, DeviceNeedsReset.
        """

    def show_counts(self) -> None:
        """Show the counters to whoever watches."""

    def get_ready(self) -> None:
        """Raise what keeps the outlet from working, unless that is over."""

    def stalled(self) -> str:
        """Who holds what: for the message of a deadline."""


class Alone:
    """Never sleeps, so every wait ends at once. For lanes within one process, and before a lane has its keeper."""

    def sleep(self, deadline: Deadline, after: int = 1) -> bool:  # noqa: ARG002 - as those who can
        """As `OutletKeeper.sleep` and `InletKeeper.sleep`: the deadline is now."""
        return False

    def lie_down(self, deadline: Deadline) -> bool:  # noqa: ARG002 - likewise
        """There is no bed."""
        return False

    get_up = sleep

    def get_ready(self, deadline: Deadline | None = None) -> None:  # noqa: ARG002 - as those who can
        """Raise InvalidState: nothing will change."""
        raise InvalidState("this end of a lane is not ready")

    def stalled(self) -> str:
        """Who is waited for."""
        return "nobody else is there"

    def broke(self, error: VqshmError) -> None:
        """Tell nobody."""

    def show_counts(self) -> None:
        """Show nobody."""


ALONE: Final = Alone()
