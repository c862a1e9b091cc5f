"""Stand-ins for transports: objects that need no module of their own in the processes they are pickled to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest


class Text:
    """Pickles to whatever its text evaluates to in the child."""

    def __init__(self, text: str, **environment: str) -> None:
        self.text = text
        self.environment = environment

    def __reduce__(self):
        return eval, (self.text,)


@pytest.fixture
def stub():
    """A peer that lives in a child only; `sender` and `receiver` are expressions for the functions that it gives."""

    def make(sender: str = "print", receiver: str = "input", more: str = "", **environment: str) -> Text:
        return Text(
            "__import__('types').SimpleNamespace(size=64, mode='single', senders=1, receivers=1, group='stub',"
            f"sender=lambda i: {sender}, receiver=lambda i: {receiver}, release=lambda: None, flush=lambda: None,"
            f"counts=lambda: {{}}, close=lambda: None, in_use=False, environment={{}}, {more})",
            **environment,
        )

    return make


@pytest.fixture
def played():
    """A peer in this process whose receiver plays back what is given, and then ends as a pipe does."""

    def make(size: int, mode: str, units: list, *, senders: int = 1, receivers: int = 1) -> SimpleNamespace:
        rest = iter(units)

        def recv():
            for unit in rest:
                return unit
            raise EOFError

        return SimpleNamespace(
            size=size,
            mode=mode,
            senders=senders,
            receivers=receivers,
            receiver=lambda _index: recv,
            object_receiver=lambda _index: recv,
            release=lambda: None,
            counts=dict,
        )

    return make
