"""Devices that are ready to use, each a handler: an object that serves one descriptor chain after the other.

    echo        gives back what it reads                     checksum    SHA-256 of what it reads
    zblock      compresses blocks, with a status record      blk         the virtio block device on a file [5.2]
    blk_client  the driver's side of blk, over any driver    image, blk_layout   what blk stands on

A handler has `device_id`, `features` (mask of the device-type feature bits it offers), `config` (the bytes of its
configuration space) and `handle(chain)`, which returns the number of bytes written to the device-writable part, from
its start. It may have `features_ok(features)`, which is told what a driver accepted.

Three rules:

1. A driver's mistake never raises out of `handle`: it is answered in the device's own status field, or, where the chain
   has no room for one, counted in `unanswered` and completed with 0 bytes.
2. Where descriptors begin and end means nothing [2.7.4]; only readable bytes, then writable bytes do.
3. What decides something is copied out of shared memory once, and the copy is checked.
"""

from __future__ import annotations

from vqshm.devices.blk import Blk
from vqshm.devices.blk_client import BlkClient
from vqshm.devices.checksum import Checksum
from vqshm.devices.echo import Echo
from vqshm.devices.zblock import ZBlock

__all__ = ["Blk", "BlkClient", "Checksum", "Echo", "ZBlock"]
