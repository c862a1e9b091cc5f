"""Names and handles mean the same in every process, however it was started."""

from __future__ import annotations

import multiprocessing
import pickle

import pytest
from vqshm_harness import BOTH, PATIENCE

from vqshm import Driver
from vqshm.host import Handle


def use_name(me, method, name):
    _run(me, method, "by_name", name)


def use_handle(me, method, name):
    with Driver.attach(name) as driver:
        handle = driver.handle
    _run(me, method, "by_handle", handle)


PROGRAM = """
from vqshm import Driver
def by_name(pipe, name):
    with Driver.attach(name) as driver:
        pipe.send(driver.request(b"by name", 64, timeout=60))
def by_handle(pipe, handle):
    with handle.attach_driver() as driver:
        pipe.send(driver.request(b"by handle", 64, timeout=60))
"""


def _run(me, method, function, argument):
    """Start a process of the standard library's, and pass on what it says."""
    import sys
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vqshm_spawned.py").write_text(PROGRAM)
        sys.path.append(folder)  # spawn passes sys.path on
        import vqshm_spawned

        context = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        process = context.Process(target=getattr(vqshm_spawned, function), args=(theirs, argument))
        process.start()
        me.send(ours.recv() if ours.poll(PATIENCE) else "nothing")
        process.join()
        me.send(process.exitcode)


@BOTH
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_process_of_multiprocessing_attaches_by_name_and_by_handle(make_region, start, notify, method):
    region = make_region(notify=notify)
    region.echo()
    main = start(use_name, method, region.name)
    assert (main.hear(), main.hear()) == (b"by name", 0)
    main = start(use_handle, method, region.name)
    assert (main.hear(), main.hear()) == (b"by handle", 0)


def test_a_handle_is_a_value():
    handle = Handle("region", "device")
    assert pickle.loads(pickle.dumps(handle)) == handle
    assert {handle: 1}[Handle("region", "device")] == 1


def test_a_handle_of_either_role_attaches_either(region):
    with Handle(region.name).attach_device() as device:
        handle = pickle.loads(pickle.dumps(device.handle))
        with handle.attach_driver() as driver:
            assert driver.handle == device.handle == Handle(region.name, "echo0")
