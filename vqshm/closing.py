"""Closing: what has a `close` is a context manager, whose block closes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Closing:
    """Something to be closed. A context manager, which closes it however its block ends."""

    __slots__ = ()

    def close(self) -> None:
        """Give back what it holds. Whoever inherits says what that is; a second time does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
