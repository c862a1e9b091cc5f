"""Print, as JSON, every access to shared memory that a few ring operations make, in order.

The functions of the ordering seam are replaced by ones that take notes, which only the interpreted core allows. An
access is [function, area, offset, value], the value being the one stored or fetched; private memory is left out.
"""

from __future__ import annotations

import json
import sys

from vqshm import core
from vqshm.memory import GuestMemory, atomic
from vqshm.ring import QueueConfig, SplitLayout

BASE, TABLES, BUFFERS = 0x1_0000, 0x1_8000, 0x1_C000
SIZE = 32


class Watched(GuestMemory):
    """Guest memory that remembers which window is which area."""

    def __init__(self, regions, areas):
        super().__init__(regions)
        self.areas = areas
        self.windows = []

    def window(self, address, count, alignment):
        region = super().window(address, count, alignment)
        self.windows.append((region, self.areas[address]))
        return region

    def area_of(self, region):
        return next((area for window, area in self.windows if window is region), None)


class Listener:
    """Stands between the rings and the seam."""

    def __init__(self):
        self.memory = None
        self.steps = []
        for kind in ("load", "store", "get", "put"):
            for bits in (16, 32, 64):
                self._listen(f"{kind}_u{bits}")
        fence = atomic.fence

        def noted_fence():
            self.steps.append(("fence", "", 0, 0))
            fence()

        atomic.fence = noted_fence

    def _listen(self, name):
        original = getattr(atomic, name)

        def noted(region, offset, *value):
            result = original(region, offset, *value)
            area = self.memory.area_of(region) if self.memory is not None else None
            if area is not None:
                self.steps.append((name, area, offset, value[0] if value else result))
            return result

        setattr(atomic, name, noted)

    def record(self, operation):
        self.steps.clear()
        result = operation()
        return list(self.steps), result


def main():
    if core.kind() != "interpreted":
        sys.exit("only the interpreted core can be listened to: set VQSHM_PURE=1")
    listener = Listener()
    traces = {}
    for event_idx in (False, True):
        for indirect in (False, True):
            layout = SplitLayout.at(BASE, SIZE)
            areas = {layout.desc_table: "desc", layout.avail_ring: "avail", layout.used_ring: "used", TABLES: "table"}
            memory = listener.memory = Watched([(BASE, bytearray(0x1_0000))], areas)
            config = QueueConfig(layout, event_idx=event_idx, indirect=indirect)
            driver = config.driver(memory, indirect_tables=(TABLES, SIZE))
            device = config.device(memory)
            suffix = f"{' event_idx' if event_idx else ''}{' indirect' if indirect else ''}"

            def add(driver=driver, **how):
                return driver.add([(BUFFERS, 16), (BUFFERS + 64, 16)], [(BUFFERS + 128, 16)], **how)

            def add_two(driver=driver, add=add):
                add(publish=False)
                add(publish=False)
                driver.publish()

            def add_and_ask(driver=driver, add=add):
                add()
                return driver.needs_kick()

            traces["add two" + suffix], _ = listener.record(add_two)
            traces["add" + suffix], _ = listener.record(add)
            chain = device.pop()
            chain.writer().write_all(b"answer")

            def give_back(device=device, head=chain.head_index):
                device.add_used(head, 6)

            def give_back_and_ask(device=device, give_back=give_back):
                give_back()
                return device.needs_notification()

            traces["give back and ask" + suffix], _ = listener.record(give_back_and_ask)
            driver.reap()
            traces["add and ask" + suffix], _ = listener.record(add_and_ask)
    json.dump(traces, sys.stdout)


if __name__ == "__main__":
    main()
