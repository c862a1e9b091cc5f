"""Which core runs: the compiled one or the interpreted one. It is never a mixture, and never a secret.

The hot modules (those with a `.pxd` beside them) exist as source, and where vqshm was built as a compiled library, too.

    VQSHM_PURE=1 in the environment    the interpreted core, even where a compiled one is installed
    otherwise                          the compiled core where it was built, else the interpreted one, with a warning
    a source checkout                  the interpreted core: nothing is compiled there

`vqshm/__init__.py` calls `install()` before it imports anything else; `vqshm/memory/__init__.py` calls `announce()`.
This module imports nothing heavy, since every `import vqshm` pays for it.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import FileFinder, ModuleSpec
    from types import ModuleType
    from typing import Literal

PACKAGE = "vqshm"
FORCE = "VQSHM_PURE"


class InterpretedCoreWarning(RuntimeWarning):
    """The interpreted core runs where the compiled one was to be expected."""


def forced() -> bool:
    """Whether the environment asks for the interpreted core: VQSHM_PURE is set, and neither empty nor 0."""
    return os.environ.get(FORCE, "") not in ("", "0")


def install() -> None:
    """Obey VQSHM_PURE: from here on, the modules of vqshm load from their `.py` and from nothing else."""
    if forced() and not any(isinstance(finder, _SourceFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _SourceFinder())


def kind() -> Literal["compiled", "interpreted"]:
    """The core of this process. Raises ImportError where the installation is a mixture of both."""
    if _pinned():
        return "interpreted"
    compiled = _compiled_on_disk()
    missing = sorted(name for name, is_compiled in compiled.items() if not is_compiled)
    if missing and len(missing) < len(compiled):
        raise ImportError(
            f"vqshm mixes two cores: {len(missing)} of {len(compiled)} hot modules have no library for this Python "
            f"({', '.join(missing)}), the others have. Install vqshm again, or remove the libraries by hand."
        )
    return "compiled" if compiled and not missing else "interpreted"


def reason() -> str:
    """Why it is this core, in one sentence."""
    if _pinned():
        return f"{FORCE} is set in the environment"
    built = _build_info()
    if kind() == "compiled":
        if built is None:
            return "compiled libraries lie beside the sources"
        return f"{built.reason}, by Cython {built.cython} and {built.compiler}"
    if built is None:
        return "this is a source checkout or an editable install, and nothing is compiled there"
    if built.core == "compiled":
        return "the compiled libraries are missing or were built for another Python"
    return str(built.reason)


def check() -> None:
    """Raise ImportError where a hot module that is loaded belongs to another core than `kind()` says."""
    running = kind()
    for name in _compiled_on_disk():
        module = sys.modules.get(name)
        if module is not None and _kind_of(module) != running:
            raise ImportError(
                f"{name} is {_kind_of(module)}, but the core of this process is {running}: two cores must not mix. "
                f"Set {FORCE} before the first import of vqshm, and never change it afterwards."
            )


def announce() -> None:
    """Say once that a slower core runs than the user may expect; say nothing to those who asked for it."""
    check()
    if _pinned() or kind() == "compiled" or _build_info() is None or _said:
        return
    _said.append(reason())
    import warnings  # noqa: PLC0415 - for those only who get one

    warnings.warn(f"vqshm runs its interpreted core, which is much slower: {_said[0]}", InterpretedCoreWarning, 3)


# -- behind the door ---------------------------------------------------------------------------------------------------

_disk: dict[str, bool] = {}  # the hot modules, looked up once: an installation does not change under a process
_said: list[str] = []  # what announce() said


class _SourceFinder:
    """A meta-path finder that sees the `.py` files of vqshm only, so that no library beside them is chosen."""

    def __init__(self) -> None:
        self._folders: dict[str, FileFinder] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is None or not name.startswith(f"{PACKAGE}."):
            return None
        from importlib.machinery import (  # noqa: PLC0415 - only who forces the interpreted core pays
            SOURCE_SUFFIXES,
            FileFinder,
            SourceFileLoader,
        )

        for folder in path:
            finder = self._folders.get(folder)
            if finder is None:
                finder = self._folders[folder] = FileFinder(folder, (SourceFileLoader, SOURCE_SUFFIXES))
            spec = finder.find_spec(name)
            if spec is not None and spec.loader is not None:
                return spec
        return None


def _pinned() -> bool:
    """Whether the interpreted core was asked for in time: the finder stands, whatever the environment says by now."""
    return any(isinstance(finder, _SourceFinder) for finder in sys.meta_path)


def _kind_of(module: ModuleType) -> str:
    return "interpreted" if str(module.__file__).endswith(".py") else "compiled"


def _compiled_on_disk() -> dict[str, bool]:
    """Each hot module, and whether a compiled library for this very Python lies beside its source."""
    if not _disk:
        from importlib.machinery import EXTENSION_SUFFIXES  # noqa: PLC0415 - not for a bare `import vqshm`

        root = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib would cost more than all else
        for folder, _, files in os.walk(root):
            package = PACKAGE + folder[len(root) :].replace(os.sep, ".")
            present = set(files)
            for stem in (name[:-4] for name in files if name.endswith(".pxd") and name != "__init__.pxd"):
                compiled = any(stem + suffix in present for suffix in EXTENSION_SUFFIXES)
                if compiled or stem + ".py" in present:
                    _disk[f"{package}.{stem}"] = compiled
    return _disk


def _build_info() -> ModuleType | None:
    """What the build hook wrote into the wheel; None where nothing was built."""
    try:
        import vqshm._build_info as built  # noqa: PLC0415 - asked for by few
    except ModuleNotFoundError:
        return None
    return sys.modules[built.__name__]
