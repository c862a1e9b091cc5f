"""The explorer and what it explores, imported by path: importlib mode puts no folder of tests on sys.path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

for name in ("explorer", "memory_models", "scenarios", "fan_scenarios", "death_scenarios", "mutants"):
    if f"vqshm_{name}" not in sys.modules:
        spec = importlib.util.spec_from_file_location(f"vqshm_{name}", Path(__file__).with_name(f"{name}.py"))
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
