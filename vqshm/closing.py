"""Closing: what holds something gives it back: by `close`, by a `with` block, and a descriptor also by being forgotten.

An exception of a signal handler strikes between any two bytecodes, and a descriptor that is only a number is lost then.
So whatever opens one has an `Owned` around it from the first moment.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
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


# An epoll object, as the one in the standard library that takes a descriptor of any kind as its own and asks nothing.
# Its `close` is one step, does nothing a second time, and happens by itself once nobody has the object any more.
Owned: TypeAlias = select.epoll

own: Final = select.epoll.fromfd


def owned(make: Callable[..., int], *args: Any) -> Owned:
    """What descriptor `make` opens, a function written in C: with its owner, in one step that nothing can interrupt."""
    return next(map(own, map(make, *([arg] for arg in args))))


def close_all(things: Iterable[Owned]) -> None:
    """Close them."""
    for thing in things:
        thing.close()
