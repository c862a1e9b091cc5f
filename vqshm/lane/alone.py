"""Alone: the keeper of a lane's end that knows of no process on the other side: who finds nothing to do is told so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vqshm.errors import InvalidState

if TYPE_CHECKING:
    from vqshm.errors import VqshmError
    from vqshm.notify.wait import Deadline


class Alone:
    """Never sleeps, so every wait ends at once. For lanes within one process, and before a lane has its keeper."""

    def sleep(self, deadline: Deadline, after: int = 1) -> bool:  # noqa: ARG002 - as those who can
        """As `OutletKeeper.sleep` and `InletKeeper.sleep`: the deadline is now."""
        return False

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
