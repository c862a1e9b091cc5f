"""Hatchling build hook: compiles the hot modules into the wheel, or builds a pure wheel that knows why it is one.

What is compiled is found, not listed: every `X.pxd` under `vqshm/` that stands beside an `X.pyx` or an `X.py`. Where
both stand there, the `.pyx` is the compiled body and the `.py` the interpreted body of one and the same module.

All work happens in a temporary copy of the package; nothing is ever written beside the sources. Editable installs and
sdists stay as they are. What came out is written into the wheel as `vqshm/_build_info.py`, for `vqshm.core` to read.

    VQSHM_BUILD=pure        do not compile
    VQSHM_BUILD=compiled    a failing compiler is an error, not a pure wheel
    VQSHM_BUILD_CFLAGS=…    more flags for compiling and linking, e.g. -fsanitize=address
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "vqshm"
MODES = ("auto", "pure", "compiled")
CFLAGS = ["-O3", "-g0", "-fno-plt", "-fvisibility=hidden"]
DIRECTIVES = {
    "language_level": 3,
    "annotation_typing": False,  # annotations are for mypy; the .pxd types what must be C
    "binding": False,  # plain C functions: about a tenth off every call
    "always_allow_keywords": True,  # f(x=1) works compiled as it does interpreted
    "embedsignature": True,  # gives back to inspect.signature and help() what binding=False takes …
    "embedsignature.format": "clinic",  # … in the one form they read
    "boundscheck": False,  # a Region checks its bounds once
    "nonecheck": True,  # None where a Region belongs is an AttributeError, not a crash; about 1 ns for a call
    "wraparound": False,
    "cdivision": True,
    "auto_pickle": False,  # what Cython makes up for itself would let anybody write over an object's fields
    "freethreading_compatible": True,  # the core has no state but the objects a caller holds
}


class BuildInfo(NamedTuple):
    """What `vqshm/_build_info.py` says."""

    core: str = "interpreted"
    reason: str = ""
    cython: str = ""
    compiler: str = ""
    modules: tuple[str, ...] = ()

    def source(self) -> str:
        """The text of the generated module."""
        lines = [f"{name} = {value!r}" for name, value in self._asdict().items()]
        return "\n".join(['"""How this copy of vqshm was built; written by tools/build_hook.py."""', "", *lines, ""])


class BuildFailed(Exception):
    """The core could not be compiled; the message says why in one line."""


class CompiledCore(BuildHookInterface[Any]):
    """The hook that hatchling runs for every wheel."""

    PLUGIN_NAME = "custom"
    _stage: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and tell hatchling what to add to the wheel and how to tag it."""
        if self.target_name != "wheel" or version == "editable":
            return
        mode = os.environ.get("VQSHM_BUILD") or "auto"
        if mode not in MODES:
            raise SystemExit(f"VQSHM_BUILD={mode!r} is not one of {', '.join(MODES)}")
        self._stage = tempfile.TemporaryDirectory(prefix="vqshm-build-")
        stage = Path(self._stage.name)
        built: list[Path] = []
        if mode == "pure":
            info = BuildInfo(reason="VQSHM_BUILD=pure was set when it was built")
        else:
            try:
                info, built = compile_package(Path(self.root), stage)
            except BuildFailed as failure:
                if mode == "compiled":
                    raise SystemExit(f"vqshm: VQSHM_BUILD=compiled, but {failure}") from failure
                info = BuildInfo(reason=str(failure))
                self._say(info.reason)
        build_data["pure_python"] = not built
        build_data["infer_tag"] = bool(built)
        for path in built:
            build_data["force_include"][str(path)] = path.relative_to(stage / "lib").as_posix()
        marker = stage / "_build_info.py"
        marker.write_text(info.source(), encoding="utf-8")
        build_data["force_include"][str(marker)] = f"{PACKAGE}/_build_info.py"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove the stage, once the wheel is written."""
        if self._stage is not None:
            self._stage.cleanup()

    def _say(self, reason: str) -> None:
        self.app.display_warning(
            f"vqshm: building WITHOUT the compiled core: {reason}.\n"
            "vqshm: the result works, about 20 times slower. With a C compiler and the Python headers, build it again."
        )


def hot_modules(root: Path) -> dict[str, Path]:
    """Module name → the file to compile, relative to `root`, for each .pxd that has a body beside it."""
    found: dict[str, Path] = {}
    for pxd in sorted((root / PACKAGE).rglob("*.pxd")):
        body = next((b for b in (pxd.with_suffix(".pyx"), pxd.with_suffix(".py")) if b.is_file()), None)
        if body is not None and body.stem != "__init__":
            found[".".join(pxd.relative_to(root).with_suffix("").parts)] = body.relative_to(root)
    return found


def compile_package(root: Path, stage: Path) -> tuple[BuildInfo, list[Path]]:
    """Compile every hot module in a copy under `stage`, into `stage/lib`. Raises BuildFailed."""
    modules = hot_modules(root)
    if not modules:
        raise BuildFailed(f"no .pxd file was found under {PACKAGE}/")
    shutil.copytree(root / PACKAGE, stage / PACKAGE, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for body in modules.values():
        if body.suffix == ".pyx":  # Cython must not see the other body of the same module
            (stage / body.with_suffix(".py")).unlink(missing_ok=True)
    # Cython writes the paths it is given into the libraries; from inside the stage they read `vqshm/ring/split.py`, and
    # no library holds the name of a temporary folder.
    with contextlib.chdir(stage):
        info = _compile_here(modules)
    built = sorted((stage / "lib").rglob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}"))
    if len(built) != len(modules):
        raise BuildFailed(f"{len(modules)} modules were compiled, but {len(built)} libraries came out")
    return info, built


def _compile_here(modules: dict[str, Path]) -> BuildInfo:
    try:
        from Cython.Build import cythonize  # noqa: PLC0415 - a missing requirement must not break the pure wheel
        from setuptools import Distribution, Extension  # noqa: PLC0415 - likewise
        from setuptools.command.build_ext import build_ext  # noqa: PLC0415 - likewise
    except ImportError as missing:
        raise BuildFailed(f"a build requirement is missing: {missing}") from missing
    extra = shlex.split(os.environ.get("VQSHM_BUILD_CFLAGS", ""))
    extensions = [
        Extension(
            name,
            [body.as_posix()],
            include_dirs=[".", body.parent.as_posix()],
            extra_compile_args=[*CFLAGS, *extra],
            extra_link_args=extra,
        )
        for name, body in modules.items()
    ]
    try:
        extensions = cythonize(
            extensions, include_path=["."], compiler_directives=DIRECTIVES, build_dir="c", force=True, quiet=True
        )
        command = build_ext(Distribution({"name": PACKAGE, "ext_modules": extensions}))
        command.build_lib, command.build_temp = "lib", "o"
        command.parallel = os.cpu_count() or 1
        command.ensure_finalized()
        command.run()
    except Exception as failure:  # a missing compiler shows in as many shapes as there are platforms
        raise BuildFailed(_one_line(failure)) from failure
    return BuildInfo(
        core="compiled",
        reason="the core was compiled when vqshm was built",
        cython=metadata.version("cython"),
        compiler=_compiler_name(command.compiler),
        modules=tuple(modules),
    )


def _one_line(failure: Exception) -> str:
    text = " ".join(str(failure).split())
    return f"compiling failed: {type(failure).__name__}: {text[:300]}"


def _compiler_name(compiler: Any) -> str:
    program = getattr(compiler, "compiler_so", None) or ["unknown"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run([program[0], "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
        return said.partition("\n")[0]
    return str(program[0])


if __name__ == "__main__":  # a look at what would be compiled
    for name, body in hot_modules(Path(__file__).resolve().parent.parent).items():
        sys.stdout.write(f"{name}  {body}\n")
