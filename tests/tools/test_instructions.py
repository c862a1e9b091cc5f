"""An operation of the compiled core takes no more instructions than its budget; and two counts of it are alike."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vqshm import core

TOOL = Path(__file__).parents[2] / "tools" / "gates" / "instructions.py"
TOOLS = {"python": "CPython 3.11.7", "python build": "plain", "cython": "3.3", "compiler": "cc 1", "machine": "x86_64"}
RECORDED = {
    "tolerance": {"same tools": 0.03, "same Python": 0.15, "other Python": 0.45},
    "tools": TOOLS,
    "budgets": {"send": {"core": 100.0, "all": 1000.0}},
}
PART = """# callgrind format
events: Ir
summary: 1000

ob=/usr/lib/libpython3.so
fl=ceval.c
fn=eval
12 300
cob=/site/vqshm/ring/split.so
cfn=pop
calls=2 0
13 450
14 250

ob=/site/vqshm/ring/split.so
fl=???
fn=pop
0 400
cob=/usr/lib/libpython3.so
cfn=new
calls=1 0
0 50

ob=/home/vqshm/msgpack.so
fn=pack
0 50
totals: 1000
"""


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("gates/instructions")


def problems(tool, *, here=TOOLS, **figures):
    found = {name: tool.Figures(*pair) for name, pair in figures.items()}
    return tool.compare(found, RECORDED, here)[1]


# -- counting ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counted(tool, tmp_path_factory):
    """The figures of this very core, counted twice in surroundings that differ."""
    if core.kind() != "compiled":
        pytest.skip("the interpreted core has no budget")
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    first = tool.measure(tmp_path_factory.mktemp("first"))[0]
    folder = tmp_path_factory.mktemp("a-folder-with-a-much-longer-name-" * 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONHASHSEED", "17")
        patch.setenv("COUNTED", "x" * 5000)
        patch.setenv("PATH", os.environ["PATH"] + ":/nowhere/but/long" * 20)
        second = tool.measure(folder)[0]
    return first, second


@pytest.mark.long
@pytest.mark.timeout(400)  # 15 s on an idle machine, for the first of them
def test_no_operation_is_over_its_budget(tool, counted):
    lines, wrong = tool.compare(counted[0], json.loads(tool.BUDGETS.read_text()), tool.toolchain())
    assert wrong == [], "\n".join(lines)


@pytest.mark.long
@pytest.mark.timeout(400)  # 15 s on an idle machine, for the first of them
def test_two_counts_of_the_core_agree_within_a_thousandth_and_of_all_within_the_tolerance(tool, counted):
    first, second = counted
    # what is not the core (malloc, the interpreter) goes other ways in other surroundings
    tolerance = json.loads(tool.BUDGETS.read_text())["tolerance"]["same tools"]
    assert list(first) == list(second)
    for name, figure in first.items():
        assert second[name].core == pytest.approx(figure.core, rel=0.001), name
        assert second[name].all == pytest.approx(figure.all, rel=tolerance), name


@pytest.mark.long
@pytest.mark.timeout(400)  # 15 s on an idle machine, for the first of them
def test_the_core_is_part_of_what_is_counted_and_not_all_of_it(counted):
    for name, figure in counted[0].items():
        assert 10 < figure.core < 1.01 * figure.all, name  # the loop around it costs a little less the second time


def test_an_interpreted_core_is_refused():
    done = subprocess.run(
        [sys.executable, str(TOOL)],
        env={**os.environ, "VQSHM_PURE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("only the compiled core is measured, but this is the interpreted one: ")
    assert done.stdout == ""


def test_a_missing_valgrind_is_told(tool, monkeypatch, tmp_path):
    monkeypatch.setattr(core, "kind", lambda: "compiled")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(tool.Unmeasurable, match="valgrind is not installed"):
        tool.measure(tmp_path)


# -- reading callgrind -------------------------------------------------------------------------------------------------


def test_a_part_is_split_by_library_and_function_and_calls_are_not_counted_twice(tool, tmp_path):
    path = tmp_path / "part.1"
    path.write_text(PART)
    assert tool.read_part(path) == {
        ("/usr/lib/libpython3.so", "eval"): 550,
        ("/site/vqshm/ring/split.so", "pop"): 400,
        ("/home/vqshm/msgpack.so", "pack"): 50,
    }


def test_a_figure_is_the_difference_of_both_counts_per_operation(tool, tmp_path):
    for number, times in enumerate((7, 1, 5, 1, 2), 1):
        lines = [f"{line} {times * cost}" for line, cost in ((1, 40), (2, 60))]
        text = f"ob=/site/vqshm/x.so\nfn=f\n{lines[0]}\n\nob=/usr/lib/libc.so\nfn=g\n{lines[1]}\n"
        (tmp_path / f"part.{number}").write_text(text)
    parts = ["", "send/1", "", "send/2", "send/2"]
    found, spent = tool.figures(parts, 10, tmp_path, Path("/site/vqshm"))
    assert found == {"send": (8.0, 20.0)}
    assert spent == {"send": {("/site/vqshm/x.so", "f"): 8.0, ("/usr/lib/libc.so", "g"): 12.0}}
    assert [line.split() for line in tool.profile(spent["send"])] == [["12.0", "libc.so", "g"], ["8.0", "x.so", "f"]]


# -- budgets -----------------------------------------------------------------------------------------------------------


def test_a_figure_within_the_tolerance_passes_and_one_beyond_it_fails(tool):
    assert problems(tool, send=(102.9, 1029.0)) == []
    assert problems(tool, send=(50.0, 500.0)) == []
    wrong = problems(tool, send=(103.2, 1000.0))
    assert len(wrong) == 1
    assert wrong[0].startswith("send (core): 103.2 instructions, 3.2% over the budget of 100.0")
    assert problems(tool, send=(100.0, 1031.0))[0].startswith("send (all): 1031.0 instructions")


def test_other_tools_are_given_a_wider_tolerance(tool):
    assert problems(tool, send=(114.9, 1149.0), here={**TOOLS, "python": "CPython 3.11.2", "cython": "3.1"}) == []
    assert len(problems(tool, send=(116.0, 1160.0), here={**TOOLS, "compiler": "cc 2"})) == 2
    assert problems(tool, send=(144.0, 1440.0), here={**TOOLS, "python": "CPython 3.12.7"}) == []
    assert len(problems(tool, send=(146.0, 1460.0), here={**TOOLS, "machine": "aarch64"})) == 2


def test_a_load_without_a_budget_and_a_budget_without_a_load_fail(tool):
    assert problems(tool) == ["send: there is a budget for it, but nothing measures it"]
    wrong = problems(tool, send=(100.0, 1000.0), receive=(1.0, 2.0))
    assert [line.partition(":")[0] for line in wrong] == ["receive (core)", "receive (all)"]


def test_what_is_recorded_passes(tool, tmp_path):
    path = tmp_path / "budgets.json"
    path.write_text(json.dumps(RECORDED))
    found = {"receive": tool.Figures(10.5, 20.0)}
    tool.record(found, TOOLS, path)
    recorded = json.loads(path.read_text())
    assert recorded["tolerance"] == RECORDED["tolerance"]
    assert tool.compare(found, recorded, TOOLS)[1] == []


def test_the_recorded_budgets_name_the_tools_they_were_taken_with(tool):
    recorded = json.loads(tool.BUDGETS.read_text())
    assert set(recorded["tools"]) == set(TOOLS)
    assert set(recorded["tolerance"]) == set(RECORDED["tolerance"])
    assert all(0 < budget["core"] < 1.01 * budget["all"] for budget in recorded["budgets"].values())
