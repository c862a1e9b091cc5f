"""What every notifier can do; a kick or a call goes through one of these [2.3]."""

from __future__ import annotations

from typing import Literal, Protocol

Kind = Literal["eventfd", "semaphore"]


class Notifier(Protocol):
    """A wake-up that is either pending or not. It may come too often, never too rarely."""

    @property
    def kind(self) -> Kind:
        """Which of the two it is."""

    def signal(self) -> None:
        """Make a wake-up pending. Never blocks; one that is pending already stays one."""

    def clear(self) -> None:
        """Consume what is pending, so that a later `wait` blocks. Never blocks itself."""

    def wait(self, timeout: float | None = None) -> bool:
        """Block until a wake-up is pending and consume it: True; False after `timeout` seconds (None: for ever)."""

    def fileno(self) -> int | None:
        """The descriptor that polls readable while a wake-up is pending; None where there is no such thing."""

    def close(self) -> None:
        """Give the handle back. May be called again; any other method then raises InvalidState."""
