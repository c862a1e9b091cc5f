"""Changes rings and memory in one random place at a time, and counts how often their tests notice.

    python tools/gates/mutation.py [--sample N] [--seed N] [--list] [FILE …]

A change is of one of these kinds: a comparison, an operation or a condition turned into its neighbour, a number one
more or less, a statement left out. It is made in a copy of the package that this interpreter imports, which is tested
there by its interpreted core, until the first failure, with the tests that know the file best. The unchanged copy must
pass them, and the time that they take says how long they may take with a change: what hangs then is neither noticed nor
overlooked, and is counted apart.

Changes that no behaviour can show are named in mutation.toml beside this file, with the reason, and are not counted.

It exits with 1 if a change survives that is not listed there.
"""

from __future__ import annotations

import argparse
import ast
import copy
import random
import sys
import time
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # PYTHONSAFEPATH leaves it out

from protections import Outcome, copy_of, installed, run  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TESTS: Final = {  # those that know a file best
    "memory/address": "memory/test_address memory/test_guest",
    "memory/arena": "memory/test_arena lane/test_outlet",
    "memory/guest": "memory/test_guest memory/test_lent",
    "memory/pool": "memory/test_pool",
    "ring/chain": "ring/test_chain ring/test_stream ring/test_split_device",
    "ring/descriptor": "ring/test_descriptor ring/test_chain",
    "ring/inflight": "ring/test_inflight",
    "ring/layout": "ring/test_layout ring/test_queue",
    "ring/queue": "ring/test_queue ring/test_state ring/test_sync",
    "ring/split": "ring/test_split_driver ring/test_split_device ring/test_model",
    "ring/split_device": (
        "ring/test_split_device ring/test_hostile_driver ring/test_inflight lane/test_inlet lane/test_call "
        "ring/test_strikes"
    ),
    "ring/split_driver": "ring/test_split_driver ring/test_hostile_device lane/test_outlet host/test_interruption",
    "ring/state": "ring/test_state ring/test_queue",
    "ring/suppress": "ring/test_suppress",
    "ring/walk": "ring/test_chain ring/test_stream ring/test_hostile_driver lane/test_inlet",
}
SELECT: Final = "not beyond_what_a_chain_can_describe"  # which maps more than a tested copy may
FACTOR, SECONDS = 3, 30  # the tests of a change may take as many times as long as without it, and as many seconds more
TURNED: Final = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Change:
    """One place of a file, and what is done there."""

    file: str
    line: int
    what: str  # "function: before -> after in statement"
    place: int  # the node's number in a walk of the tree
    edit: Callable[[ast.AST], ast.AST]

    @property
    def name(self) -> str:
        """By which mutation.toml knows it; it outlives changes elsewhere."""
        return f"{self.file}: {self.what}"

    def make(self, source: str) -> str:
        """The source with it."""
        tree = ast.parse(source)
        wanted = list(ast.walk(tree))[self.place]
        new = self.edit(wanted)
        for parent in ast.walk(tree):
            for field, value in ast.iter_fields(parent):
                if value is wanted:
                    setattr(parent, field, new)
                elif isinstance(value, list):
                    value[:] = [new if each is wanted else each for each in value]
        return ast.unparse(ast.fix_missing_locations(tree))


def edits(node: ast.AST) -> Iterator[Callable[[ast.AST], ast.AST]]:
    """What can be done to a node."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield _turned("ops", TURNED[type(node.ops[0])])
    elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in TURNED:
        yield _turned("op", TURNED[type(node.op)])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield lambda wanted: wanted.operand  # type: ignore[attr-defined]  # such a node has one
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield _constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield _constant(node.value + 1)
        yield _constant(node.value - 1)
    elif isinstance(node, ast.Assign | ast.AugAssign | ast.Raise) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield lambda _: ast.Pass()


def _turned(field: str, kind: type[ast.AST]) -> Callable[[ast.AST], ast.AST]:
    def edit(node: ast.AST) -> ast.AST:
        setattr(node, field, [kind()] if field == "ops" else kind())
        return node

    return edit


def _constant(value: int) -> Callable[[ast.AST], ast.AST]:
    return lambda _: ast.Constant(value)


def changes(file: str, source: str) -> Iterator[Change]:
    """All that can be made to the functions of a file, but to messages and annotations."""
    tree = ast.parse(source)
    places = {id(node): place for place, node in enumerate(ast.walk(tree))}
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        for node, statement in _inside(function, function):
            for edit in edits(node):
                before, after = ast.unparse(node), ast.unparse(edit(copy.deepcopy(node)))
                where = ast.unparse(statement).partition("\n")[0]
                what = f"{function.name}: {before} -> {after}" + (f" in {where}" if where != before else "")
                yield Change(file, getattr(node, "lineno", 0), what, places[id(node)], edit)


def _inside(node: ast.AST, statement: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """What is run of a function's body, each with the statement it stands in."""
    for child in node.body if isinstance(node, ast.FunctionDef) else ast.iter_child_nodes(node):
        is_text = isinstance(child, ast.JoinedStr) or (isinstance(child, ast.keyword) and child.arg is not None)
        if is_text or isinstance(child, ast.FunctionDef):
            continue
        within = child if isinstance(child, ast.stmt) else statement
        yield child, within
        yield from _inside((child.value or child) if isinstance(child, ast.AnnAssign) else child, within)


class Bench:
    """A copy of the package, in which one change at a time is made and tested."""

    def __init__(self, folder: Path, sources: dict[str, str]) -> None:
        self.folder = folder
        self.sources = sources
        self._patience: dict[str, float] = {}  # seconds, by file

    def judge(self, change: Change) -> tuple[str, str]:
        """What became of a change: a state, and the test that noticed. Exits if tests fail without any."""
        path = self.folder / "vqshm" / f"{change.file}.py"
        patience = self._patience.get(change.file) or self._measure(change.file)
        path.write_text(change.make(self.sources[change.file]), encoding="utf-8")
        outcome = self._test(change.file, patience)
        path.write_text(self.sources[change.file], encoding="utf-8")
        hung = outcome.code is None or "Timeout" in outcome.failed
        # The unchanged file passes: whatever else happens now is noticed, that it cannot be imported, too.
        return "hung" if hung else "caught" if outcome.code else "SURVIVED", outcome.failed

    def _measure(self, file: str) -> float:
        start = time.monotonic()
        outcome = self._test(file, 3600)
        if outcome.code != 0:
            sys.exit(f"the tests of {file} fail as it is: {outcome.failed}\n{outcome.said}")
        self._patience[file] = FACTOR * (time.monotonic() - start) + SECONDS
        return self._patience[file]

    def _test(self, file: str, patience: float) -> Outcome:
        return run(self.folder, " ".join(f"tests/{name}.py" for name in TESTS[file].split()), SELECT, patience)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sample", type=int, metavar="N", help="so many of all changes, drawn by the seed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="only name them")
    parser.add_argument("files", nargs="*", metavar="FILE", default=list(TESTS), help=f"of {', '.join(TESTS)}")
    options = parser.parse_args()

    package = installed()
    sources = {file: (package / f"{file}.py").read_text(encoding="utf-8") for file in options.files}
    chosen = [change for file, source in sources.items() for change in changes(file, source)]
    equal: dict[str, str] = tomllib.loads((HERE / "mutation.toml").read_text(encoding="utf-8"))
    listed = sum(change.name in equal for change in chosen)
    print(f"{len(chosen)} changes are possible, {listed} of them listed as equal", flush=True)
    chosen = [change for change in chosen if change.name not in equal]
    if options.sample is not None:
        chosen = random.Random(options.seed).sample(chosen, min(options.sample, len(chosen)))
    states: Counter[str] = Counter()
    with copy_of(package) as folder:
        bench = Bench(folder, sources)
        for change in chosen:
            state, first = ("there", "") if options.list else bench.judge(change)
            states[state] += 1
            print(f"{state:9} {change.name} (line {change.line})   {first}", flush=True)
    killed, lived = states["caught"], states["SURVIVED"]
    if killed or lived:
        print(f"\n{killed} of {killed + lived} changes were noticed, {killed / (killed + lived):.1%}; ", end="")
        print(f"{states['hung']} more never came to an end")
    return 1 if lived else 0


if __name__ == "__main__":
    sys.exit(main())
