"""Whether the hot functions of the compiled core are free of Python-object operations.

    python tools/gates/hot_paths.py [--show NAME] [--root FOLDER] [--list FILE]

What is hot, and what it may do nevertheless and why, stands in hot_paths.toml beside this file. The package is
translated to C with the directives of tools/build_hook.py, which takes seconds and no C compiler, and the C is read by
generated_c.py. A hot function may

- do anything on the way to an error: in a branch that ends in `raise`, or in a call that `raises` lists;
- call other hot functions, and those that `leaves` lists;
- hold references during a call, as often as `hot` says;
- do what an `excuse` allows it on one line.

It exits with 1 if a hot function does more, and if the list allows more than is needed. `--show` prints what a function
does, listed or not: `--show vqshm.ring.walk:Walk.step`.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import shutil
import sys
import tempfile
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # PYTHONSAFEPATH leaves it out

from generated_c import LEAVES, Function, Operation, find_function, operations  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PACKAGE = "vqshm"
COUNT = "count"


@dataclass
class Excuse:
    """Operations that one function may do on the lines that read `line`, comments apart."""

    function: str
    line: str
    does: list[str]
    reason: str
    needed: set[str] = field(default_factory=set)


@dataclass
class HotList:
    """What hot_paths.toml says."""

    hot: dict[str, int]  # function → references it may hold
    leaves: dict[str, str]  # function that may be called nevertheless → why
    raises: dict[str, str]  # method that never returns → why it is called without `raise`
    excuses: list[Excuse]

    @classmethod
    def read(cls, path: Path) -> HotList:
        """Raises TypeError for a key that nobody knows."""
        with path.open("rb") as file:
            content: dict[str, Any] = tomllib.load(file)
        excuses = [Excuse(**entry) for entry in content.pop("excuse", [])]
        return cls(content.pop("hot"), content.pop("leaves", {}), content.pop("raises", {}), excuses, **content)


def directives(hook: Path = HERE.parent / "build_hook.py") -> dict[str, Any]:
    """The compiler directives, read from the build hook: importing it takes hatchling."""
    for node in ast.parse(hook.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DIRECTIVES":
            return dict(ast.literal_eval(node.value))
    raise LookupError(f"{hook} defines no DIRECTIVES")


def module_of(name: str) -> str:
    return name.partition(":")[0]


def translate(root: Path, modules: Iterable[str], stage: Path) -> dict[str, str]:
    """Module → the C that Cython makes of it, in a copy of the package under `stage`. Raises FileNotFoundError."""
    from Cython.Build import cythonize  # noqa: PLC0415 - the list can be read without it
    from Cython.Compiler.Errors import CompileError  # noqa: PLC0415 - likewise

    shutil.copytree(root / PACKAGE, stage / PACKAGE, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for body in (stage / PACKAGE).rglob("*.pyx"):
        body.with_suffix(".py").unlink(missing_ok=True)  # the other body of the same module
    wanted = sorted(set(modules))
    with contextlib.chdir(stage):  # so that the paths in the C are those of the repository
        bodies = [_body(module) for module in wanted]
        try:
            cythonize(
                [body.as_posix() for body in bodies],
                include_path=["."],
                compiler_directives={**directives(), "show_performance_hints": False},
                build_dir=str(stage / "c"),  # Cython remembers which folders it made
                force=True,
                quiet=True,
            )
        except CompileError as error:  # what is wrong was printed
            raise SystemExit(f"Cython cannot compile {error}") from None
    texts = [(stage / "c" / body.with_suffix(".c")).read_text(encoding="utf-8") for body in bodies]
    return dict(zip(wanted, texts, strict=True))


def _body(module: str) -> Path:
    path = Path(*module.split("."))
    for body in (path.with_suffix(".pyx"), path.with_suffix(".py")):
        if body.is_file() and path.with_suffix(".pxd").is_file():
            return body
    raise FileNotFoundError(f"{module} is no compiled module: it has no .pxd, or no body beside it")


# -- the calls that always raise ---------------------------------------------------------------------------------------


def cold_lines(root: Path, modules: Iterable[str], raises: Iterable[str]) -> set[tuple[str, int]]:
    """The lines of all branches that end in a call that never returns, by file. C does not show that it does not."""
    names = set(raises)
    found = set()
    for module in set(modules):
        path = Path(*module.split(".")).with_suffix(".py")
        if not (root / path).with_suffix(".pyx").is_file():
            for node in ast.walk(ast.parse((root / path).read_text(encoding="utf-8"))):
                for block in (node.body, node.orelse) if isinstance(node, ast.If) else ():
                    if block and _called(block[-1]) in names:
                        last = block[-1].end_lineno or block[-1].lineno
                        found |= {(path.as_posix(), line) for line in range(block[0].lineno, last + 1)}
    return found


def _called(statement: ast.stmt) -> str:
    """The last word of what a statement calls: `_refuse` for `self._refuse()`."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        return ast.unparse(statement.value.func).rpartition(".")[2]
    return ""


def returning(root: Path, raises: Iterable[str]) -> Iterator[str]:
    """What is wrong with the list of calls that never return: each must end in `raise` in every compiled module."""
    names = set(raises)
    seen = set()
    for path in sorted(pxd.with_suffix(".py") for pxd in (root / PACKAGE).rglob("*.pxd")):
        if not path.is_file():  # its body is a .pyx, in which no such call is known
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name in names:
                seen.add(node.name)
                if not isinstance(node.body[-1], ast.Raise) or any(isinstance(n, ast.Return) for n in ast.walk(node)):
                    place = path.relative_to(root).as_posix()
                    yield f"{place}:{node.lineno}: {node.name} is listed under raises, but it can return"
    for name in sorted(names - seen):
        yield f"{name} is listed under raises, but nothing of that name is defined"


# -- the check ---------------------------------------------------------------------------------------------------------


@dataclass
class Checked:
    """One hot function, for the table."""

    name: str
    references: int
    allowed: int
    excused: int
    problems: list[str]


class Check:
    """Compares what the C does with what the list allows."""

    def __init__(self, root: Path, hot: HotList, generated: dict[str, str]) -> None:
        self.root = root
        self.hot = hot
        self.generated = generated
        self.cold = cold_lines(root, generated, hot.raises)
        self.left: set[str] = set()  # those of `leaves` that are called
        self.names = {name.replace(":", "."): name for name in (*hot.hot, *hot.leaves)}

    def source(self, file: str, line: int) -> str:
        """A line without what stands around its code."""
        return (self.root / file).read_text(encoding="utf-8").splitlines()[line - 1].partition("  # ")[0].strip()

    def function(self, name: str) -> Checked:
        found = find_function(self.generated[module_of(name)], name)
        allowed = self.hot.hot[name]
        if found is None:
            return Checked(name, 0, allowed, 0, [f"{name} is listed, but Cython compiles no such function"])
        done = operations(found, self.cold)
        references = sum(operation.kind == COUNT for operation in done)
        by_line: dict[tuple[str, int], list[Operation]] = {}
        excused = 0
        for operation in done:
            if operation.kind == COUNT or self.may_leave(operation):
                continue
            if self.excused(name, operation):
                excused += 1
            else:
                by_line.setdefault((operation.file, operation.line), []).append(operation)
        problems = [
            f"{file}:{line}: {name.partition(':')[2]} {_say(here)}: {self.source(file, line)}"
            for (file, line), here in by_line.items()
        ]
        if references > allowed:
            lines = Counter(o.line for o in done if o.kind == COUNT)
            where = ", ".join(f"{line} ({n})" for line, n in sorted(lines.items()))
            problems.append(
                f"{found.file}:{found.line}: {name.partition(':')[2]} counts references {references} times, "
                f"{allowed} are allowed; lines {where}"
            )
        return Checked(name, references, allowed, excused, problems)

    def may_leave(self, operation: Operation) -> bool:
        if operation.kind != LEAVES:
            return False
        name = self.names.get(operation.name)
        if name is not None:
            self.left.add(name)
        return name is not None

    def excused(self, name: str, operation: Operation) -> bool:
        text = self.source(operation.file, operation.line)
        for excuse in self.hot.excuses:
            if excuse.function == name and excuse.line == text and operation.kind in excuse.does:
                excuse.needed.add(operation.kind)
                return True
        return False

    def unneeded(self) -> Iterator[str]:
        """What the list allows although nothing does it, after all functions were looked at."""
        for excuse in self.hot.excuses:
            idle = [kind for kind in excuse.does if kind not in excuse.needed]
            if idle:
                yield f"{excuse.function} no longer needs to be excused for {', '.join(idle)}: {excuse.line}"
        for name in self.hot.leaves:
            if name not in self.left:
                yield f"no hot function leaves to {name} any more"


def _say(found: list[Operation]) -> str:
    by_kind: dict[str, list[str]] = {}
    for operation in found:
        by_kind.setdefault(operation.kind, []).append(operation.name)
    return "; ".join(f"{kind} ({', '.join(dict.fromkeys(names))})" for kind, names in by_kind.items())


def run(root: Path, hot: HotList) -> int:
    with tempfile.TemporaryDirectory(prefix="vqshm-hot-") as folder:
        stage = Path(folder)  # which is read from here on: the package may change meanwhile
        check = Check(stage, hot, translate(root, map(module_of, hot.hot), stage))
        checked = [check.function(name) for name in hot.hot]
        problems = [problem for c in checked for problem in c.problems]
        problems += [*check.unneeded(), *returning(stage, hot.raises)]
    width = max(len(c.name) for c in checked)
    print(f"{'function':<{width}}  references  allowed  excused")
    for c in checked:
        state = "" if not c.problems else "  FAILED"
        print(f"{c.name:<{width}}  {c.references:>10}  {c.allowed:>7}  {c.excused:>7}{state}")
    for problem in problems:
        print(problem, file=sys.stderr)
    spare = [f"{c.name} ({c.references})" for c in checked if c.references < c.allowed]
    if spare:
        print(f"fewer references than allowed, the list can be tightened: {', '.join(spare)}")
    print(f"{len(checked)} hot functions, {len(problems)} problems")
    return 1 if problems else 0


def show(root: Path, name: str, raises: Iterable[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="vqshm-hot-") as stage:
        text = translate(root, [module_of(name)], Path(stage))[module_of(name)]
    found: Function | None = find_function(text, name)
    if found is None:
        print(f"Cython compiles no {name}", file=sys.stderr)
        return 1
    for operation in operations(found, cold_lines(root, [module_of(name)], raises)):
        print(f"{operation.file}:{operation.line}: {operation.kind:<10} {operation.name}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, default=HERE.parents[1], help="the folder that holds the package")
    parser.add_argument("--list", type=Path, default=HERE / "hot_paths.toml", help="what is hot")
    parser.add_argument("--show", metavar="NAME", help="print what one function does: module:Class.method")
    options = parser.parse_args()
    hot = HotList.read(options.list)
    return show(options.root, options.show, hot.raises) if options.show else run(options.root, hot)


if __name__ == "__main__":
    sys.exit(main())
