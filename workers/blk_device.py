"""A virtio block device on an image file, until the region closes.

Usage: python -m workers.blk_device disk.img [--region NAME] [--device blk0] [--read-only]
An image is made with: truncate -s 16M disk.img
"""

from __future__ import annotations

import argparse
import signal
import sys

from vqshm import Device
from vqshm.devices import Blk
from vqshm.errors import VqshmError


def run(args: argparse.Namespace) -> None:
    with (
        Blk(args.image, read_only=args.read_only, queues=args.queues) as disk,
        Device.attach(args.region, args.device, features=disk.features, config=disk.config) as device,
    ):
        place = f"{args.region}/{device.plan.name}"
        try:
            print(f"{place}: {args.image}, {disk.capacity} sectors, is waiting for drivers", flush=True)
            device.serve(disk)
        finally:
            print(f"{place}: {args.image} ends; requests failed: {disk.failed}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="A virtio block device.")
    parser.add_argument("image", help="a file of whole 512-byte sectors")
    parser.add_argument("--region", default="demo", help="name of the shared region (%(default)s)")
    parser.add_argument("--device", help="name of the device in it; needed if there are several")
    parser.add_argument("--read-only", action="store_true", help="refuse every write")
    parser.add_argument("--queues", type=int, default=1, help="queues it was laid out with (%(default)s)")
    run(parser.parse_args())


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (VqshmError, OSError) as error:
        sys.exit(f"blk_device: {error}")
