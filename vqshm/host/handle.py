"""Handle: the address of a device, to be sent anywhere: it pickles, and means the same in every process of this user.

    process = multiprocessing.get_context("spawn").Process(target=work, args=(Handle("demo", "echo0"),))

An attached `Driver` or `Device` belongs to its process and does not pickle; its `handle` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqshm.host.device import Device
    from vqshm.host.driver import Driver


@dataclass(frozen=True, slots=True)
class Handle:
    """A device in a region, by name; `device` is None for the only one."""

    region: str
    device: str | None = None

    def attach_driver(self, **options: Any) -> Driver:
        """As `Driver.attach` with these names."""
        from vqshm.host.driver import Driver  # noqa: PLC0415 - a driver has a handle, and a handle makes drivers

        return Driver.attach(self.region, self.device, **options)

    def attach_device(self, **options: Any) -> Device:
        """As `Device.attach` with these names."""
        from vqshm.host.device import Device  # noqa: PLC0415 - as above

        return Device.attach(self.region, self.device, **options)
