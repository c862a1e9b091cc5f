#!/usr/bin/env python3
"""Explore every order in which the two ends of a queue or of a lane can go on, and every delay of their stores.

    python tools/explore.py exchange --count 3 --size 2 --model tso
    python tools/explore.py lane --count 3 --many --flags
    python tools/explore.py fan-in --size 1 --model sc --preemptions 3
    python tools/explore.py exchange --mutant 'device: no fence after arming'      how that fails, step by step
    python tools/explore.py --mutants                                              their names

Runs the interpreted core. The tests do so for small counts; time and memory grow steeply with the count: about 20,000
states a second and a kilobyte each. See tests/model/explorer.py for what is explored and how.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["VQSHM_PURE"] = "1"  # before the first import of vqshm

MODELS = Path(__file__).parents[1] / "tests" / "model"


def load() -> Any:
    """Import the explorer as the tests do."""
    spec = importlib.util.spec_from_file_location("vqshm_model_tests", MODELS / "conftest.py")
    assert spec is not None  # noqa: S101
    assert spec.loader is not None  # noqa: S101
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return import_module("vqshm_scenarios")


def scenario(chosen: argparse.Namespace, scenarios: Any) -> Any:
    """What was asked for."""
    common = {"event_idx": not chosen.flags, "start": chosen.start}
    if chosen.scenario == "fan-in":
        return import_module("vqshm_fan_scenarios").fan_in(chosen.count, chosen.size, event_idx=not chosen.flags)
    if chosen.scenario in {"share", "broadcast"}:
        fans = import_module("vqshm_fan_scenarios")
        step = fans.SLOW if chosen.slow else fans.QUICK
        return fans.fan_out(chosen.count, chosen.size, mode=chosen.scenario, event_idx=not chosen.flags, step=step)
    if chosen.scenario == "lane":
        return scenarios.lane(chosen.count, chosen.size, many=chosen.many, held=chosen.held, **common)
    if chosen.scenario == "succession":
        return import_module("vqshm_death_scenarios").succession(
            chosen.count, chosen.size, many=chosen.many, kills=chosen.kills, limit=chosen.attempts
        )
    return scenarios.exchange(
        chosen.count, chosen.size, batch=chosen.batch, lazy=chosen.many, spurious=chosen.spurious, **common
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "scenario",
        nargs="?",
        choices=["exchange", "lane", "fan-in", "share", "broadcast", "succession"],
        default="exchange",
    )
    parser.add_argument("--count", type=int, default=2, help="messages")
    parser.add_argument("--size", type=int, default=2, help="descriptors of the ring")
    parser.add_argument("--start", type=int, default=0, help="position of the rings, 0..65535")
    parser.add_argument("--flags", action="store_true", help="without EVENT_IDX")
    parser.add_argument("--many", action="store_true", help="several messages per call")
    parser.add_argument("--batch", type=int, default=1, help="exchange: chains per kick")
    parser.add_argument("--held", type=int, default=2, help="lane: messages given back before that is shown")
    parser.add_argument("--kills", type=int, default=1, help="succession: receivers that are killed")
    parser.add_argument("--attempts", type=int, default=0, help="succession: then a message is given up; 0 is never")
    parser.add_argument("--slow", action="store_true", help="share, broadcast: nobody is found quick")
    parser.add_argument("--spurious", type=int, default=0, help="exchange: wake-ups for nothing")
    parser.add_argument("--model", nargs="+", choices=["sc", "tso", "c11"], default=["tso"], help="of memory")
    parser.add_argument("--preemptions", type=int, help="bound them; without it, all orders are tried")
    parser.add_argument("--limit", type=int, default=50_000_000, help="states")
    parser.add_argument("--mutant", help="take a protection out first")
    parser.add_argument("--mutants", action="store_true", help="list the mutants")
    return parser.parse_args()


def main() -> int:
    chosen = arguments()
    scenarios = load()
    mutants = {mutant.what: mutant for mutant in import_module("vqshm_mutants").MUTANTS}
    if chosen.mutants:
        print("\n".join(mutants))
        return 0
    explorer, models = import_module("vqshm_explorer"), import_module("vqshm_memory_models").MODELS
    planted = mutants[chosen.mutant].planted() if chosen.mutant else contextlib.nullcontext()
    with planted:
        for model in chosen.model:
            start = time.monotonic()
            try:
                result = explorer.Explorer(
                    scenario(chosen, scenarios), models[model](), preemptions=chosen.preemptions, limit=chosen.limit
                ).run()
            except explorer.Violation as violation:
                print(violation)
                return 1
            except RuntimeError as error:  # the limit
                print(error, file=sys.stderr)
                return 2
            print(f"{model}: {result}, {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
