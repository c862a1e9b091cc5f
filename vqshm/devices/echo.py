"""Echo: writes back what it reads, as much as there is room for.

    readable   any bytes
    writable   the same bytes; what does not fit is left out, which the number of bytes written tells

It has no features, no configuration and no status.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vqshm import spec
from vqshm.errors import RuleError

if TYPE_CHECKING:
    from vqshm.ring.chain import DescriptorChain


class Echo:
    """A handler that copies the readable part of a chain to its writable part."""

    device_id = spec.VQSHM_ID_ECHO
    features = 0
    config = b""

    def __init__(self) -> None:
        self.unanswered = 0  # chains whose buffers are not in guest memory

    def handle(self, chain: DescriptorChain) -> int:
        """Bytes written: the smaller of what can be read and what can be written."""
        try:
            source, sink = chain.reader(), chain.writer()
        except RuleError:
            self.unanswered += 1
            return 0
        for view in source.views():
            if sink.write(view) < view.nbytes:
                break
        return sink.bytes_written
