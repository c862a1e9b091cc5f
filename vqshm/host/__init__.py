"""Host: real processes. The coordinator makes a region; a driver and a device process attach to each device in it."""

from vqshm.host.coordination.coordinator import Coordinator
from vqshm.host.coordination.ground import MemoryKind
from vqshm.host.coordination.launcher import Launched, launch
from vqshm.host.coordination.supervisor import Happening, Supervise, Supervisor, Worker
from vqshm.host.device import Device, Handler
from vqshm.host.driver import Driver
from vqshm.host.handle import Handle
from vqshm.host.ports import DevicePort, DriverPort
from vqshm.host.request import Lease, Request
from vqshm.host.system.liveness import ProcessId, Watch
from vqshm.host.system.names import Condition, Found, look_at, look_at_all, open_plan, sweep
from vqshm.host.system.pages import Hints

__all__ = [
    "Condition",
    "Coordinator",
    "Device",
    "DevicePort",
    "Driver",
    "DriverPort",
    "Found",
    "Handle",
    "Handler",
    "Happening",
    "Hints",
    "Launched",
    "Lease",
    "MemoryKind",
    "ProcessId",
    "Request",
    "Supervise",
    "Supervisor",
    "Watch",
    "Worker",
    "launch",
    "look_at",
    "look_at_all",
    "open_plan",
    "sweep",
]
