"""An echo driver: sends one text, or a stream of messages with many in flight, and checks what comes back.

Usage: python -m workers.echo_driver [TEXT] [--region NAME] [--device echo0] [--count N] [--size BYTES]
"""

from __future__ import annotations

import argparse
import signal
import sys
import time

from vqshm import Driver
from vqshm.errors import OutOfBuffers, QueueFull, VqshmError


def stream(driver: Driver, count: int, size: int) -> str:
    message = (bytes(range(256)) * (size // 256 + 1))[:size]
    sent, received, start = 0, 0, time.perf_counter()
    while received < count:
        try:  # until the ring or the buffers are full: that is the back-pressure
            while sent < count:
                driver.submit([message], [size])
                sent += 1
        except (QueueFull, OutOfBuffers):
            if not driver.in_flight:
                raise  # a single message is too large
        driver.kick()
        for request in driver.completed(timeout=10.0):
            with request:
                if request.output() != message:
                    raise VqshmError(f"message {received} came back changed: {request.written} of {size} bytes")
            received += 1
    rate = count / (time.perf_counter() - start)
    return f"{count} messages of {size} bytes came back unchanged, {rate:,.0f} per second"


def main() -> None:
    parser = argparse.ArgumentParser(description="An echo driver.")
    parser.add_argument("text", nargs="?", help="send this once, instead of a stream")
    parser.add_argument("--region", default="demo", help="name of the shared region (%(default)s)")
    parser.add_argument("--device", help="name of the device in it; needed if there are several")
    parser.add_argument("--count", type=int, default=10_000, help="messages (%(default)s)")
    parser.add_argument("--size", type=int, default=64, help="bytes of each (%(default)s)")
    args = parser.parse_args()
    with Driver.attach(args.region, args.device) as driver:
        if args.text:
            print(driver.request(args.text.encode(), len(args.text.encode()), timeout=10.0).decode())
        else:
            print(stream(driver, args.count, max(args.size, 1)))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (VqshmError, OSError) as error:
        sys.exit(f"echo_driver: {error}")
