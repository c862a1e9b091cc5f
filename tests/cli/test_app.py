"""The group: quick help, what errors look like, what happens without the extras."""

from __future__ import annotations

import json
import sys

import click
import pytest

from vqshm import __version__, core
from vqshm.cli import app, main
from vqshm.errors import MissingExtra, NotFound


def test_help_lists_every_command_and_loads_none(start):
    code = (
        "import sys; from vqshm.cli import main; code = main(['--help']);"
        "print(code, [name for name in ('rich', 'msgpack', 'vqshm.host', 'vqshm.demo') if name in sys.modules])"
    )
    running = start("-c", code)
    assert running.end() == 0
    assert running.seen.splitlines()[-1] == "0 []"
    assert all(name in running.seen for name in app.COMMANDS)


@pytest.mark.parametrize("command", app.COMMANDS)
def test_every_command_has_help(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")


def test_the_version_names_the_core(run):
    assert run("--version").stdout.startswith(f"vqshm {__version__}, {core.kind()} core (")


def test_an_unknown_command_is_a_usage_error(run):
    result = run("no-such")
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.parametrize("missing", [["click"], ["rich"], ["click", "rich"]])
def test_without_the_extra_it_says_how_to_get_it(start, missing):
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({missing})); from vqshm.cli import main; sys.exit(main(['ls']))"
    )
    running = start("-c", code)
    assert running.end() == 1
    assert running.errors == f"error: the command line needs {' and '.join(missing)}: pip install 'vqshm[cli]'\n"


@pytest.fixture
def failing(monkeypatch):
    """Have `ls` raise something."""

    def arrange(error: BaseException) -> None:
        @click.command()
        def command() -> None:
            raise error

        module = type(sys)("failing")
        module.command = command
        monkeypatch.setitem(sys.modules, "failing", module)
        monkeypatch.setitem(app.COMMANDS, "ls", ("failing:command", ""))

    return arrange


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (NotFound("there is no region 'x'"), "error: there is no region 'x'\n"),
        (MissingExtra("pip install 'vqshm[x]'"), "error: pip install 'vqshm[x]'\n"),
        (PermissionError(13, "Permission denied", "/dev/shm/x"), "error: /dev/shm/x: Permission denied\n"),
        (OSError(24, "Too many open files"), "error: [Errno 24] Too many open files\n"),
    ],
)
def test_an_error_is_one_line(run, failing, error, line):
    failing(error)
    result = run("ls")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", line)


def test_a_mistake_of_ours_is_a_traceback(run, failing):
    failing(ZeroDivisionError("oops"))
    assert isinstance(run("ls").exception, ZeroDivisionError)


def test_ctrl_c_is_130(run, failing):
    failing(KeyboardInterrupt())
    result = run("ls")
    assert (result.exit_code, result.stderr) == (130, "")


def test_main_returns_the_code(capsys):
    assert main(["doctor", "--json"]) == 0
    assert {entry["level"] for entry in json.loads(capsys.readouterr().out)} <= {"ok", "warn"}
    assert main(["no-such"]) == 2
