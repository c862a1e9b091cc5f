"""How the lists of what is tested are checked and printed: those of spec_index.py and faults.py."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


def entry(state: str, id_: str, says: str, below: Iterable[str] = ()) -> Iterator[str]:
    """The lines of one row: its state, its id and what it says, then what is to be told of it, line by line."""
    yield f"  {state:<10}{id_:<22}{says}".rstrip()
    for line in below:
        yield f"{'':<34}{line}"


def sums(states: Mapping[str, int]) -> str:
    """How many rows are in which state."""
    return ", ".join(f"{count} {state}" for state, count in states.items())


def repeated(ids: Iterable[str]) -> list[str]:
    """What is wrong with a list in which an id stands more than once, one sentence each."""
    return [f"{id_} is there {n} times" for id_, n in Counter(ids).items() if n > 1]
