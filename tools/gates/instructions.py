"""How many instructions an operation of the compiled core takes, and whether that is within its budget.

    python tools/gates/instructions.py [--record] [--profile LOAD]

A figure that does not depend on what else the machine does: callgrind executes the loads of instruction_loads.py and
counts. Each load runs with a count and with twice that count; the difference, per operation, knows nothing of
starting up. Two figures come out of it:

    core    instructions in vqshm's own libraries: they depend on vqshm, Cython and the C compiler
    all     with those of the interpreter and of libc, and of the loop around it

The budgets stand in instructions.json, with the tools they were taken with; `--record` writes what was found. Two
runs with the same tools count alike, to the instruction. What other tools change was measured, and is tolerated:

    same tools      3 %
    same Python    15 %    Cython 3.1 to 3.3: -5 to +1 %; -O2 for -O3: up to 6 %; an optimised interpreter: -11 %
    other Python   45 %    3.12 and 3.13 against 3.11: 17 to 37 %, as each reference count asks for immortal objects

The vqshm that is measured is the one this interpreter imports. It exits with 1 if a figure is over its budget, and with
2 where nothing can be measured: an interpreted core, no valgrind.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
BUDGETS = HERE / "instructions.json"
LOADS = HERE / "instruction_loads.py"
TIMEOUT = 300  # seconds


class Unmeasurable(Exception):
    """Why there are no figures here."""


Place = tuple[str, str]  # library, function
Spent = dict[Place, float]  # instructions per operation


class Figures(NamedTuple):
    """Instructions per operation."""

    core: float
    all: float


def measure(folder: Path) -> tuple[dict[str, Figures], dict[str, Spent]]:
    """Run the loads under callgrind, which writes into `folder`; as `figures`. Raises Unmeasurable."""
    from vqshm import core  # noqa: PLC0415 - who only reads budgets needs no vqshm

    if core.kind() != "compiled":
        raise Unmeasurable(f"only the compiled core is measured, but this is the {core.kind()} one: {core.reason()}")
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise Unmeasurable("valgrind is not installed")
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    command = [
        *(valgrind, "--tool=callgrind", "--dump-before=getppid", "--compress-strings=no", "--compress-pos=no"),
        *(f"--callgrind-out-file={folder}/part", f"--log-file={folder}/log"),
        *(sys.executable, "-P", "-B", str(LOADS)),
    ]
    # What stands in the environment takes room in the interpreter's pools, and freeing what begins a pool costs four
    # instructions more: so as little as possible stands there. The seed decides the order of every set.
    done = subprocess.run(
        command,
        env={**kept, "PYTHONHASHSEED": "0", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    if done.returncode:
        log = (folder / "log").read_text(encoding="utf-8", errors="replace") if (folder / "log").exists() else ""
        raise Unmeasurable(f"the loads ended with {done.returncode}: {(done.stderr or log).strip()[-1000:]}")
    said = json.loads(done.stdout)
    return figures(said["parts"], said["count"], folder, Path(core.__file__).resolve().parent)


def figures(parts: list[str], count: int, folder: Path, ours: Path) -> tuple[dict[str, Figures], dict[str, Spent]]:
    """The figures from callgrind's parts in `folder`, and by function what they consist of.

    `parts` says what each part is about: `name/1`, `name/2`, or nothing that counts. `count`: operations of `name/1`.
    `ours`: the folder of the libraries that are vqshm's.
    """
    sums: dict[str, Counter[Place]] = {}
    for number, label in enumerate(parts, 1):
        if label:
            sums.setdefault(label, Counter()).update(read_part(folder / f"part.{number}"))
    found, spent = {}, {}
    for name in dict.fromkeys(label.rpartition("/")[0] for label in sums):
        once, twice = sums[f"{name}/1"], sums[f"{name}/2"]
        spent[name] = {place: (twice[place] - once[place]) / count for place in twice}
        of_core = sum(cost for (library, _), cost in spent[name].items() if library.startswith(f"{ours}/"))
        found[name] = Figures(round(of_core, 1), round(sum(spent[name].values()), 1))
    return found, spent


def read_part(path: Path) -> Counter[Place]:
    """The instructions of one part by (library, function)."""
    found: Counter[Place] = Counter()
    library = function = ""
    is_call = False
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition("=")
        if key == "ob":
            library = value
        elif key == "fn":
            function = value
        elif key == "calls":
            is_call = True  # the next line has what was spent in there, and it is counted there
        elif line[:1].isdigit():
            if not is_call:
                found[library, function] += int(line.split()[1])
            is_call = False
    return found


def profile(spent: Spent) -> list[str]:
    """The functions in which the instructions of one operation are spent, the most expensive first."""
    ranked = sorted(spent.items(), key=lambda item: -item[1])
    return [f"{cost:>10.1f}  {Path(library).name:<44.44}  {name}" for (library, name), cost in ranked if cost >= 1]


# -- budgets -----------------------------------------------------------------------------------------------------------


def toolchain() -> dict[str, str]:
    """What the figures depend on besides vqshm."""
    from vqshm import _build_info as built  # noqa: PLC0415 - there is one where the build hook compiled the core

    optimised = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "python build": "optimised" if optimised else "plain",
        "cython": built.cython,
        "compiler": built.compiler,
        "machine": platform.machine(),
    }


def likeness(here: dict[str, str], there: dict[str, str]) -> str:
    """Which tolerance applies to budgets taken there."""
    if here == there:
        return "same tools"
    near = [(tools.get("machine"), tools.get("python", "").rpartition(".")[0]) for tools in (here, there)]
    return "same Python" if near[0] == near[1] else "other Python"


def compare(found: dict[str, Figures], recorded: dict[str, Any], here: dict[str, str]) -> tuple[list[str], list[str]]:
    """The lines of the table, and what is wrong."""
    there = recorded["tools"]
    tolerance = recorded["tolerance"][likeness(here, there)]
    budgets: dict[str, dict[str, float]] = recorded["budgets"]
    width = max(map(len, [*found, *budgets, "instructions for one"]))
    lines = [
        f"{'instructions for one':<{width}}" + "".join(f"{kind:>11}{'budget':>9}        " for kind in Figures._fields)
    ]
    wrong = []
    for name, figure in found.items():
        line = f"{name:<{width}}"
        for kind, value in figure._asdict().items():
            budget = budgets.get(name, {}).get(kind)
            if budget is None:
                wrong.append(f"{name} ({kind}): {value:.1f} instructions, and no budget; see --record")
                line += f"{value:>11.1f}{'-':>9}        "
                continue
            over = value / budget - 1
            line += f"{value:>11.1f}{budget:>9.1f}{over:>+8.1%}"
            if over > tolerance:
                wrong.append(
                    f"{name} ({kind}): {value:.1f} instructions, {over:.1%} over the budget of {budget:.1f}; "
                    f"{tolerance:.0%} are tolerated ({likeness(here, there)})"
                )
        lines.append(line.rstrip())
    wrong += [f"{name}: there is a budget for it, but nothing measures it" for name in budgets if name not in found]
    differing = [f"{key} {there.get(key)}, here {value}" for key, value in here.items() if there.get(key) != value]
    if differing:
        lines.append(f"the budgets were taken with {'; '.join(differing)}: {tolerance:.0%} are tolerated")
    return lines, wrong


def record(found: dict[str, Figures], here: dict[str, str], path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content |= {"tools": here, "budgets": {name: figure._asdict() for name, figure in found.items()}}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="make what is found the budget")
    parser.add_argument(
        "--profile", metavar="LOAD", help="print the functions that one load spends its instructions in"
    )
    parser.add_argument("--budgets", type=Path, default=BUDGETS, help="the file they stand in")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="vqshm-callgrind-") as folder:
            found, spent = measure(Path(folder))
    except Unmeasurable as reason:
        print(reason, file=sys.stderr)
        return 2
    if options.profile:
        if options.profile not in spent:
            parser.error(f"no load is called {options.profile!r}, but {', '.join(map(repr, spent))}")
        print(*profile(spent[options.profile]), sep="\n")
        return 0
    here = toolchain()
    if options.record:
        record(found, here, options.budgets)
    lines, wrong = compare(found, json.loads(options.budgets.read_text(encoding="utf-8")), here)
    print(*lines, sep="\n")
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
