"""Actors, as in the tests of the host layer; see ../host/harness.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# importlib mode puts no folder of tests on sys.path, so that helpers are imported by their path.
HARNESS = Path(__file__).parents[1] / "host" / "harness.py"

if "vqshm_harness" not in sys.modules:
    spec = importlib.util.spec_from_file_location("vqshm_harness", HARNESS)
    sys.modules["vqshm_harness"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["vqshm_harness"])

from vqshm_harness import make_region, nursery, region, served, start  # noqa: E402 - fixtures

__all__ = ["make_region", "nursery", "region", "served", "start"]
