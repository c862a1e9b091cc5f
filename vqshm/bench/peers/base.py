"""Base: what an adapter is. It is made and torn down in the parent, and used in the children that it is pickled to."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

Mode = Literal["single", "batch", "view", "reserve"]

_numbers = itertools.count()


def nothing() -> None:
    """What `release` is where nothing has to be given back."""


class Peer:
    """One way to move messages, in one mode.

    single    send(message), recv() -> bytes
    batch     send([message, …]), recv() -> [bytes, …]
    view      send(message), recv() -> a view of the transport's own memory, given back by release()
    reserve   send(head) writes nothing but a stamp at both ends of the transport's own memory; received as in view
    """

    name: ClassVar[str]  # in tables
    mode: ClassVar[Mode] = "single"
    package: ClassVar[str] = ""  # what pip installs; "" for the standard library
    module: ClassVar[str] = ""  # what is imported
    group: ClassVar[str] = ""  # what --vs calls it: its package's name, as a rule
    takes: ClassVar[frozenset[str]] = frozenset({"oneway"})  # the measures it takes part in
    fan_out: ClassVar[Literal["share", "broadcast"]] = "share"  # who of several receivers gets a message
    fan_ends: ClassVar[int] = 4  # end messages, so that each of four receivers meets one
    environment: ClassVar[dict[str, str]] = {}  # what its children find in theirs

    def __init__(self, size: int, depth: int, senders: int = 1, receivers: int = 1) -> None:
        self.size = size
        self.depth = depth
        self.senders = senders
        self.receivers = receivers
        self.tag = f"vqb{os.getpid():x}x{next(_numbers):x}z"
        self.in_use = False  # a thread still works with it: it ends with its process, and is not closed before
        self._unpickled: dict[str, Any] = {}  # what stays in the parent

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_unpickled": {}}

    # -- in the parent -------------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Make what all processes share."""

    def tear_down(self) -> None:
        """Remove it, and what killed children left of it."""

    def pids(self) -> list[int]:
        """Helper processes."""
        return []

    # -- in the children -----------------------------------------------------------------------------------------------

    def sender(self, index: int) -> Callable[[Any], Any]:
        """The function that sends, of sender `index`."""
        raise NotImplementedError

    def receiver(self, index: int) -> Callable[[], Any]:
        """The function that receives, of receiver `index`."""
        raise NotImplementedError

    def release(self) -> None:
        """Give back what was received last; in modes view and reserve."""

    def object_sender(self, index: int) -> Callable[[Any], Any]:
        """As `sender`, for objects."""
        import pickle  # noqa: PLC0415 - not for all

        send, dumps = self.sender(index), pickle.dumps
        return lambda thing: send(dumps(thing, 5))

    def object_receiver(self, index: int) -> Callable[[], Any]:
        """As `receiver`, for objects."""
        import pickle  # noqa: PLC0415 - not for all

        recv, loads = self.receiver(index), pickle.loads
        return lambda: loads(recv())

    def flush(self) -> None:
        """Let nothing that was sent wait in this process."""

    def counts(self) -> dict[str, int]:
        """What the transport counted in this process."""
        return {}

    def close(self) -> None:
        """Leave."""

    # ------------------------------------------------------------------------------------------------------------------

    @classmethod
    def installed(cls) -> bool:
        """Whether its package is there."""
        return not cls.module or importlib.util.find_spec(cls.module) is not None

    @classmethod
    def version(cls) -> str:
        """Of its package; "" for the standard library."""
        try:
            return importlib.metadata.version(cls.package) if cls.package else ""
        except importlib.metadata.PackageNotFoundError:
            return "unknown"


def socket_path(tag: str) -> Path:
    """Where a socket of a peer goes."""
    return Path(tempfile.gettempdir()) / f"{tag}.sock"


def remove_tagged(tag: str) -> None:
    """Remove what killed processes of other packages left in shared memory under a name of ours."""
    for place in Path("/dev/shm").glob(f"*{tag}*"):
        place.unlink(missing_ok=True)


def load(module: str) -> Any:
    """An optional package, imported by who uses it and not before."""
    return importlib.import_module(module)
