"""Checksum: the SHA-256 digest of what it reads.

    readable   any bytes, none included
    writable   u8 digest[32]; with less room nothing is written

It has no features, no configuration and no status: 0 bytes written is the refusal. (CRC-32 comes with `zblock`.)
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from vqshm import spec
from vqshm.errors import RuleError

if TYPE_CHECKING:
    from vqshm.ring.chain import DescriptorChain

DIGEST_SIZE: Final = 32


class Checksum:
    """A handler that writes the SHA-256 digest of the readable part of a chain."""

    device_id = spec.VQSHM_ID_CHECKSUM
    features = 0
    config = b""

    def __init__(self) -> None:
        self.unanswered = 0  # chains without room for a digest, or with buffers that are not in guest memory

    def handle(self, chain: DescriptorChain) -> int:
        """Bytes written: 32, or 0 where the digest does not fit."""
        try:
            source, sink = chain.reader(), chain.writer()
        except RuleError:
            self.unanswered += 1
            return 0
        if sink.available_bytes < DIGEST_SIZE:
            self.unanswered += 1
            return 0
        digest = hashlib.sha256()
        for view in source.views():
            digest.update(view)
        return sink.write(digest.digest())
