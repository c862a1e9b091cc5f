"""A zblock driver: streams a file through the device, verifies every block, and sums up.

Usage: python -m workers.zblock_driver FILE [--region NAME] [--device zblock0] [--block BYTES]
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import BinaryIO

from vqshm import Driver
from vqshm.devices import zblock
from vqshm.errors import OutOfBuffers, QueueFull, VqshmError


def stream(driver: Driver, file: BinaryIO, block: int) -> str:
    sent, plain, compressed, start = 0, 0, 0, time.perf_counter()
    data = file.read(block)
    while data or driver.in_flight:
        try:  # until the ring or the buffers are full: that is the back-pressure
            while data:
                driver.submit([zblock.pack_header(sent, len(data)), data], [zblock.reply_size(len(data))], tag=data)
                driver.kick()
                sent, plain, data = sent + 1, plain + len(data), file.read(block)
        except (QueueFull, OutOfBuffers):
            if not driver.in_flight:
                raise  # a single block is too large
        for request in driver.completed(timeout=10.0):
            with request:
                result = zblock.unpack_reply(request.output())
            if result.status or result.plain(len(request.tag)) != request.tag:
                raise VqshmError(f"a block of {len(request.tag)} bytes came back wrong: {result.status.name}")
            compressed += result.compressed
    sizes = f"{sent} blocks, {plain} bytes -> {compressed} ({compressed / max(plain, 1):.1%})"
    return f"{file.name}: {sizes}, all verified, in {time.perf_counter() - start:.2f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description="A zblock driver.")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--region", default="demo", help="name of the shared region (%(default)s)")
    parser.add_argument("--device", help="name of the device in it; needed if there are several")
    parser.add_argument("--block", type=int, default=64 << 10, help="bytes of a block (%(default)s)")
    args = parser.parse_args()
    with args.file.open("rb") as file, Driver.attach(args.region, args.device) as driver:
        print(stream(driver, file, max(args.block, 1)))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (VqshmError, OSError) as error:
        sys.exit(f"zblock_driver: {error}")
