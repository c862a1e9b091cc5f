"""Actors, as in the tests of the host layer; see ../host/harness.py."""

from __future__ import annotations

from vqshm_harness import make_region, nursery, region, served, start

__all__ = ["make_region", "nursery", "region", "served", "start"]
