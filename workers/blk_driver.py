"""A block driver: goes over a disk, reads it, writes it, checks every sector, and leaves it as it was.

Usage: python -m workers.blk_driver [--region NAME] [--device blk0] [--read-only]
Interrupted while it writes, it leaves its pattern in one MiB of the disk.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import zlib

from vqshm import Driver
from vqshm.devices import BlkClient
from vqshm.errors import VqshmError

PIECE = 2048  # sectors: 1 MiB


def check(disk: BlkClient, sector: int, data: bytes) -> None:
    disk.write(sector, data)
    if disk.read(sector, len(data) // 512) != data:
        raise VqshmError(f"the {len(data)} bytes from sector {sector} on are not what was written")


def go_over(disk: BlkClient, *, write: bool) -> str:
    size, crc32, start = disk.capacity * 512, 0, time.perf_counter()
    for sector in range(0, disk.capacity, PIECE):
        before = disk.read(sector, min(PIECE, disk.capacity - sector))
        crc32 = zlib.crc32(before, crc32)
        if write and not disk.read_only:
            check(disk, sector, os.urandom(len(before)))
            check(disk, sector, before)
    disk.flush()
    rate = size / (time.perf_counter() - start) / 1e6
    did = "read, written, verified, restored" if write and not disk.read_only else "read"
    return f"{disk.id()}: {size} bytes {did}, CRC-32 {crc32:#010x}, {rate:.1f} MB/s"


def main() -> None:
    parser = argparse.ArgumentParser(description="A block driver.")
    parser.add_argument("--region", default="demo", help="name of the shared region (%(default)s)")
    parser.add_argument("--device", help="name of the device in it; needed if there are several")
    parser.add_argument("--read-only", action="store_true", help="write nothing")
    args = parser.parse_args()
    with Driver.attach(args.region, args.device) as driver:
        print(go_over(BlkClient(driver), write=not args.read_only))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (VqshmError, OSError) as error:
        sys.exit(f"blk_driver: {error}")
