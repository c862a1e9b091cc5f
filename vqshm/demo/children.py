"""Children: the processes of the demo as their parent sees them, and the signals that the parent gets."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import FrameType

LIMIT: Final = 5.0  # seconds for a killed process to go
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SECOND_HAND: Final = {"PeerGone", "CoordinatorGone"}  # errors that report the end of another process


class Child:
    """One of the three."""

    def __init__(self, role: str, process: subprocess.Popen[bytes], words: IO[bytes] | None = None) -> None:
        assert process.stdout is not None  # noqa: S101 - it was asked for
        self.role = role
        self.process = process
        self.pidfd = os.pidfd_open(process.pid)
        self.pipe = process.stdout.fileno()
        self.may_end = False
        self.ready: dict[str, Any] = {}
        self.result: dict[str, Any] | None = None
        self.error: dict[str, Any] | None = None
        self._words = words  # what it says on standard error
        self._line = b""
        os.set_blocking(self.pipe, False)

    @property
    def failed(self) -> bool:
        """Whether it complained, or ended before its time or with a bad status."""
        status = self.process.returncode
        return self.error is not None or (status is not None and not (self.may_end and status == 0))

    @property
    def severity(self) -> int:
        """0 for who was killed, 1 for who failed, 2 for who only tells of another's end."""
        if (self.process.returncode or 0) < 0:
            return 0
        return 2 if self.second_hand else 1

    @property
    def second_hand(self) -> bool:
        """Whether it only failed because another one has ended."""
        return self.process.returncode == 0 if self.error is None else self.error["kind"] in SECOND_HAND

    def read(self) -> list[dict[str, Any]] | None:
        """What it said since the last time; None when its pipe has ended."""
        try:
            piece = os.read(self.pipe, 1 << 16)
        except BlockingIOError:
            return []
        if not piece:
            return None
        *lines, self._line = (self._line + piece).split(b"\n")
        return [json.loads(line) for line in lines]

    def read_rest(self) -> list[dict[str, Any]]:
        """What it said before it ended."""
        events: list[dict[str, Any]] = []
        while more := self.read():
            events += more
        return events

    def dismiss(self) -> None:
        """Close its standard input: it may end now."""
        self.may_end = True
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def fate(self) -> str:
        """What became of it, in words."""
        who = f"the {self.role} (process {self.process.pid})"
        status = self.process.returncode
        if self.error is not None:
            return f"{who}: {self.error['kind']}: {self.error['message']}"
        if status is None:
            return f"{who} runs"
        if status < 0:
            return f"{who} was killed by {signal.Signals(-status).name}"
        return f"{who} ended with status {status}{self._last_words()}"

    def _last_words(self) -> str:
        if self._words is None:
            return ""
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def kill(self) -> None:
        """End it, if it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait(LIMIT)

    def close(self) -> None:
        """Close everything that was open for it."""
        os.close(self.pidfd)
        for pipe in (self.process.stdin, self.process.stdout, self._words):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Signals:
    """Takes note of signals: `fileno()` becomes readable, `number` is the last one. In the main thread only."""

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}
        self._wakeup = -1
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        """Becomes readable with a signal."""
        return self._read

    def listen(self) -> None:
        """Take note from now on."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in ENDING:
            # What is ignored stays ignored: nohup, and background jobs of a shell.
            if signal.getsignal(number) not in {signal.SIG_IGN, None}:
                self._before[number] = signal.signal(number, self._note)

    def caught(self) -> bool:
        """Whether it was one of ours that made `fileno()` readable; it is not, afterwards."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)
        return self.number != 0

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.number = number

    def close(self) -> None:
        """Leave the signals to whom they were left before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)
