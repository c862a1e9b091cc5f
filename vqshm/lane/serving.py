"""Serving: the two loops over what comes out of a lane, or of several, until its senders have left."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from vqshm.errors import EndOfMessages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def serve(source: Any, answer: Callable[[memoryview], Any]) -> None:
    """Answer each call that comes from `source` with what `answer` makes of its message. Raises as `recv_view`.

    What is no call is handed to `answer`, too; its answer then must be empty or None.
    """
    while True:
        try:
            loan = source.recv_view()
        except EndOfMessages:
            return
        with loan as view:
            reply = answer(view)
            if reply is not None:
                loan.reply(reply)
            reply = None  # perhaps a part of the view, which then must be gone


def messages(source: Any) -> Iterator[bytes]:
    """The messages of `source` as they come. Raises as `recv`.

    No message passes through a variable here: an exception could strike between the call and the next step.
    """
    with contextlib.suppress(EndOfMessages):
        yield from iter(source.recv, None)
