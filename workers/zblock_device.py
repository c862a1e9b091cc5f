"""A zblock device: compresses blocks for its driver, until the region closes.

Usage: python -m workers.zblock_device [--region NAME] [--device zblock0] [--level 1..9]
"""

from __future__ import annotations

import argparse
import signal
import sys

from vqshm import Device
from vqshm.devices import ZBlock
from vqshm.errors import VqshmError


def run(region: str, name: str | None, level: int) -> None:
    handler = ZBlock(level)
    with Device.attach(region, name, features=handler.features, config=handler.config) as device:
        try:
            print(f"{region}/{device.plan.name}: zblock device is waiting for drivers, level {level}", flush=True)
            device.serve(handler)
        finally:
            print(f"{region}/{device.plan.name}: zblock device ends", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="A zblock device.")
    parser.add_argument("--region", default="demo", help="name of the shared region (%(default)s)")
    parser.add_argument("--device", help="name of the device in it; needed if there are several")
    parser.add_argument("--level", type=int, default=1, choices=range(1, 10), help="1 fast … 9 small (%(default)s)")
    args = parser.parse_args()
    run(args.region, args.device, args.level)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (VqshmError, OSError) as error:
        sys.exit(f"zblock_device: {error}")
