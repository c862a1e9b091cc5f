"""Nothing that comes from another process is ever executed: no pickle, no eval, on no path (F16)."""

from __future__ import annotations

import ast
import contextlib
import pickle
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest

import vqshm
from vqshm import errors
from vqshm.errors import ProtocolError
from vqshm.message import payload
from vqshm.message.payload import frame
from vqshm.transport import messages
from vqshm.transport.saved import unpack_state

PACKAGE = Path(vqshm.__file__).parent
EXECUTES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "copyreg", "code"}
CALLS = {"eval", "exec", "compile", "__import__"}
# `vqshm bench` measures how others do with pickled objects; it talks to nobody but its own children.
APART = {"bench"}


def modules():
    return [
        path for path in PACKAGE.rglob("*.py*") if path.suffix in {".py", ".pyx"} and "__pycache__" not in path.parts
    ]


def words_of(path: Path) -> set[str]:
    """What a module imports, and which of the words that execute it uses as a bare name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Name) and node.id in CALLS:
            found.add(node.id)
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.add("allow_pickle")
    return found


@pytest.mark.fault("F16")
def test_no_module_imports_or_calls_what_executes_data():
    seen = [path for path in modules() if path.relative_to(PACKAGE).parts[0] not in APART]
    assert len(seen) > 80
    for path in seen:
        if path.suffix == ".py":
            assert not words_of(path) & (EXECUTES | CALLS | {"allow_pickle"}), path
        else:
            assert not any(word in path.read_text(encoding="utf-8") for word in ("pickle", "eval(", "exec(")), path


@pytest.mark.fault("F16")
def test_the_search_finds_what_it_searches_for(tmp_path):
    path = tmp_path / "module.py"
    for code, word in (
        ("import pickle", "pickle"),
        ("from marshal import loads", "marshal"),
        ("def f():\n    import pickle as p", "pickle"),
        ("f = eval", "eval"),
        ("exec('1')", "exec"),
        ("np.load(f, allow_pickle=True)", "allow_pickle"),
    ):
        path.write_text(code)
        assert word in words_of(path)


@pytest.mark.fault("F16")
def test_sending_and_receiving_objects_never_imports_pickle():
    """Which the standard library would have to do for whoever unpickles."""
    code = (
        "import sys, vqshm; from vqshm import Sender, Receiver; from vqshm.message.payload import decode, encode;"
        "decode(encode({'a': [1, 2.5, None, b'x']})); assert 'pickle' not in sys.modules, 'pickle'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.fault("F16")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_from_a_hostile_peer_is_not_opened(tmp_path, protocol):
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung), protocol)
    pickle.loads(trap)
    assert sprung.exists()  # the trap works
    sprung.unlink()
    packed = msgpack.packb({"type": "attach", "role": "driver", "device": trap, "pid": 1, "start_time": 1})
    for open_it, data in (
        (messages.decode, messages._HEADER.pack(len(packed), messages.VERSION, 0) + packed),
        (messages.decode, messages._HEADER.pack(len(trap), messages.VERSION, 0) + trap),
        (unpack_state, trap),
        (payload.decode, trap),
        (payload.decode, msgpack.packb(msgpack.ExtType(1, trap))),
        (payload.decode, frame.header(frame.ARRAY, len(trap), b"|O") + trap),
        (payload.decode, frame.header(frame.TABLE, len(trap)) + trap),
        (payload.decode, frame.header(frame.BATCH, len(trap)) + trap),
    ):
        with contextlib.suppress(ProtocolError, ValueError, errors.MissingExtra):
            open_it(data)
        assert not sprung.exists()
    assert payload.decode(frame.header(frame.BYTES, len(trap)) + trap) == trap
    assert not sprung.exists()
