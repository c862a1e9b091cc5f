"""An echo device: gives every driver its own bytes back, until the region closes.

Usage: python -m workers.echo_device [--region NAME] [--device echo0]
"""

from __future__ import annotations

import argparse
import signal
import sys

from vqshm import Device
from vqshm.devices import Echo
from vqshm.errors import VqshmError


def run(region: str, name: str | None) -> None:
    handler = Echo()
    with Device.attach(region, name, features=handler.features, config=handler.config) as device:
        try:
            print(f"{region}/{device.plan.name}: echo device is waiting for drivers", flush=True)
            device.serve(handler)
        finally:
            print(f"{region}/{device.plan.name}: echo device ends", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="An echo device.")
    parser.add_argument("--region", default="demo", help="name of the shared region (%(default)s)")
    parser.add_argument("--device", help="name of the device in it; needed if there are several")
    args = parser.parse_args()
    run(args.region, args.device)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (VqshmError, OSError) as error:
        sys.exit(f"echo_device: {error}")
