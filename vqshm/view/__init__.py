"""View: looking at queues and regions, at other people's too, without disturbing anybody.

    image      a private copy of a queue, and what is in flight      picture   a queue drawn as text
    snapshot   a running region: who, in which state, how much       regions   those that exist, and which are left over
    machine    what this computer offers

Names below are imported on first use: whoever draws a queue in a bytearray needs no host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqshm.view.image import Chain as Chain
    from vqshm.view.image import RingImage as RingImage
    from vqshm.view.image import read_ring as read_ring
    from vqshm.view.machine import Finding as Finding
    from vqshm.view.machine import examine as examine
    from vqshm.view.picture import draw as draw
    from vqshm.view.picture import render as render
    from vqshm.view.regions import list_regions as list_regions
    from vqshm.view.snapshot import Observer as Observer
    from vqshm.view.snapshot import RegionSnapshot as RegionSnapshot
    from vqshm.view.snapshot import take as take

_HOME = {
    "Chain": "image",
    "Finding": "machine",
    "Observer": "snapshot",
    "RegionSnapshot": "snapshot",
    "RingImage": "image",
    "draw": "picture",
    "examine": "machine",
    "list_regions": "regions",
    "read_ring": "image",
    "render": "picture",
    "take": "snapshot",
}

__all__ = [*_HOME]  # noqa: PLE0604 - the table above is the list


def __getattr__(name: str) -> Any:
    import importlib  # noqa: PLC0415 - kept out of a bare import

    if name not in _HOME:
        raise AttributeError(f"module 'vqshm.view' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"vqshm.view.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
