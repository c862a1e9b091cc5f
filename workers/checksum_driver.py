"""A checksum driver: has files hashed by the device, one block per request, and checks every digest.

Usage: python -m workers.checksum_driver FILE … [--region NAME] [--device checksum0] [--block BYTES]
Printed is the digest of the file if it is one block, else the digest of the digests of its blocks.
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import sys
from pathlib import Path

from vqshm import Driver
from vqshm.devices.checksum import DIGEST_SIZE
from vqshm.errors import VqshmError


def digest(driver: Driver, path: Path, block: int) -> str:
    digests: list[bytes] = []
    with path.open("rb") as file:
        while (data := file.read(block)) or not digests:
            answer = driver.request(data, writable=DIGEST_SIZE, timeout=10.0)
            if answer != hashlib.sha256(data).digest():
                raise VqshmError(f"{path}: the digest of block {len(digests)} is wrong")
            digests.append(answer)
    return (digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()).hex()


def main() -> None:
    parser = argparse.ArgumentParser(description="A checksum driver.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--region", default="demo", help="name of the shared region (%(default)s)")
    parser.add_argument("--device", help="name of the device in it; needed if there are several")
    parser.add_argument("--block", type=int, default=256 << 10, help="bytes of a request (%(default)s)")
    args = parser.parse_args()
    with Driver.attach(args.region, args.device) as driver:
        for path in args.files:
            print(f"{digest(driver, path, max(args.block, 1))}  {path}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (VqshmError, OSError) as error:
        sys.exit(f"checksum_driver: {error}")
