"""The kernel kills a device that takes more memory than its group may: its driver hears of it as of any kill."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
from vqshm_harness import PATIENCE, new_name

from vqshm import Device, Driver
from vqshm.errors import PeerGone

LIMIT = 96 << 20  # bytes: room for an interpreter
GROUPS = (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max"))


@pytest.fixture
def group():
    """A control group of little memory."""
    for root, limit in GROUPS:
        folder = Path(root) / f"vqshm-{new_name()}"
        with contextlib.suppress(OSError):
            folder.mkdir()
            try:
                (folder / limit).write_text(str(LIMIT))
                for swap in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
                    with contextlib.suppress(OSError):
                        (folder / swap).write_text("0" if swap.endswith("max") else str(LIMIT))
            except OSError:
                folder.rmdir()
                raise
            yield folder
            folder.rmdir()
            return
    pytest.skip("no control group for memory can be made here")


def hungry(me, name, folder):
    """An echo device that, when it is told to, eats until it is killed."""
    (Path(folder) / "cgroup.procs").write_text(str(os.getpid()))
    with Device.attach(name) as device:
        me.send("up")
        device.wait_driver()
        for chain in device:
            if chain.reader().read() == b"eat":
                eaten = []
                while True:
                    eaten.append(bytearray(b"\1") * (1 << 20))
            device.complete(chain, chain.writer().write(b"well"))


@pytest.mark.fault("D21")
def test_a_device_that_the_kernel_kills_for_its_memory_is_gone_like_any_other(region, group):
    device = region.start(hungry, str(group))
    with Driver.attach(region.name) as driver:
        assert driver.request(b"x", 8, timeout=PATIENCE) == b"well"
        eater = driver.submit([b"eat"], [8])
        with pytest.raises(PeerGone, match=str(device.pid)):
            list(driver.completed(PATIENCE))
        assert device.end() == -signal.SIGKILL
        region.echo()
        lost = driver.reset(PATIENCE)
        assert lost == [eater]
        lost[0].release()
        assert driver.request(b"after", 8, timeout=PATIENCE) == b"after"
