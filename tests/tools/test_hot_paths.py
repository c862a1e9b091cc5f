"""The hot functions of the core do nothing to Python objects that is not excused; and the check of that can fail."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vqshm import core

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "gates" / "hot_paths.py"

needs_cython = pytest.mark.skipif(
    importlib.util.find_spec("Cython") is None and not os.environ.get("CI"),
    reason="Cython is not installed: it translates the core to the C that is read",
)

SMALL = """
class Counter:
    def step(self, by):
        if self.broken:
            self._refuse()
        if by < 0:
            raise ValueError(
                f"a step of {by}"
            )
        self.total = self.total + by
        self._note()
        return self.total

    def pair(self):
        return self.total, self.total

    def _note(self):
        self.steps = self.steps + 1

    def _refuse(self):
        raise RuntimeError(f"broken at {self.total}")
"""
SMALL_PXD = """
cdef class Counter:
    cdef long long total, steps
    cdef bint broken
    cpdef long long step(self, long long by) except -1
    cpdef tuple pair(self)
    cdef int _note(self) except -1
"""
STEP = '"vqshm.small:Counter.step" = 0\n'
NOTE = '"vqshm.small:Counter._note" = 0\n'
PAIR = '"vqshm.small:Counter.pair" = 9\n'
RAISES = '[raises]\n_refuse = "always raises"\n'
EXCUSE = """
[[excuse]]
function = "vqshm.small:Counter.pair"
line = "return self.total, self.total"
does = ["create"]
reason = "the result"
"""


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=110
    )


@pytest.fixture(scope="module")
def tools():
    """The modules (hot_paths, generated_c), imported as the script imports them."""
    names = ("hot_paths", "generated_c")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOL.parent)
        yield tuple(importlib.import_module(name) for name in names)
    for name in names:
        del sys.modules[name]


@pytest.fixture
def check(tools, tmp_path, capsys):
    """Checks a package of one small module against a list; returns what is wrong, one line each."""

    def checks(listed, source=SMALL, pxd=SMALL_PXD):
        package = tmp_path / "vqshm"
        package.mkdir(exist_ok=True)
        for name, text in (("__init__.py", ""), ("small.py", source), ("small.pxd", pxd)):
            (package / name).write_text(text)
        (tmp_path / "list.toml").write_text(listed)
        status = tools[0].run(tmp_path, tools[0].HotList.read(tmp_path / "list.toml"))
        wrong = capsys.readouterr().err.splitlines()
        assert status == (1 if wrong else 0)
        return wrong

    return checks


def line_of(text, source=SMALL):
    return next(number for number, line in enumerate(source.splitlines(), 1) if line.strip() == text)


# -- the core ----------------------------------------------------------------------------------------------------------


@needs_cython
@pytest.mark.long
@pytest.mark.skipif(core.forced(), reason="the same sources are translated in the run on the compiled core")
def test_the_hot_functions_of_the_core_do_nothing_that_is_not_excused():
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith(" hot functions, 0 problems")


@needs_cython
def test_an_undeclared_local_in_a_hot_function_of_the_core_fails_by_its_line(tmp_path):
    shutil.copytree(ROOT / "vqshm", tmp_path / "vqshm", ignore=shutil.ignore_patterns("__pycache__"))
    body = tmp_path / "vqshm" / "ring" / "split_device.py"
    added = "        undeclared = self.size; undeclared = undeclared + 1"
    text, times = re.subn(
        r'(    def _claim_seen\(self\) -> int:\n        """.*?"""\n)',
        rf"\1{added}\n",
        body.read_text(),
        count=1,
        flags=re.DOTALL,
    )
    assert times == 1
    body.write_text(text)
    listed = tmp_path / "list.toml"
    listed.write_text('[hot]\n"vqshm.ring.split_device:DeviceQueue._claim_seen" = 99\n')
    done = run("--root", tmp_path, "--list", listed)
    assert done.returncode == 1
    place = f"vqshm/ring/split_device.py:{line_of(added.strip(), text)}: DeviceQueue._claim_seen create"
    assert [line for line in done.stderr.splitlines() if line.startswith(place)], done.stderr


# -- the rules, on a small module --------------------------------------------------------------------------------------


@needs_cython
def test_c_alone_and_branches_that_end_in_an_error_are_clean(check):
    assert check(RAISES + "[hot]\n" + STEP + NOTE) == []


@needs_cython
@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("self.total = self.total + by", "late = self.total; self.total = late + by", "operate"),
        ("self.total = self.total + by", "self.total = self.total + by.bit_length()", "call"),
        ("self.total = self.total + by", "self.total = self.total + __debug__.real", "attribute"),
        ("self.total = self.total + by", "self.total = (self.total + by) & 0xFFFFFFFF00000000", "operate"),
    ],
)
def test_work_on_python_objects_fails_by_its_line_and_kind(check, before, after, kind):
    source = SMALL.replace(before, after)
    wrong = check(RAISES + "[hot]\n" + STEP.replace("0", "99") + NOTE, source)
    assert len(wrong) == 1
    assert wrong[0].startswith(f"vqshm/small.py:{line_of(after, source)}: Counter.step ")
    assert f"{kind} (" in wrong[0]


@needs_cython
def test_a_call_that_leaves_the_hot_functions_must_be_listed(check):
    wrong = check(RAISES + "[hot]\n" + STEP)
    assert [line.partition(": ")[2] for line in wrong] == [
        "Counter.step leaves (vqshm.small.Counter._note): self._note()"
    ]
    assert check(RAISES + '[leaves]\n"vqshm.small:Counter._note" = "why"\n[hot]\n' + STEP) == []


@needs_cython
def test_a_listed_exit_that_nobody_takes_fails(check):
    wrong = check('[leaves]\n"vqshm.small:Counter.step" = "why"\n[hot]\n' + NOTE)
    assert wrong == ["no hot function leaves to vqshm.small:Counter.step any more"]


@needs_cython
def test_an_excuse_allows_its_kinds_on_its_line_only(check):
    assert check("[hot]\n" + PAIR + EXCUSE) == []
    assert len(check("[hot]\n" + PAIR + EXCUSE.replace('["create"]', '["call"]'))) == 2  # and it is not needed
    assert len(check("[hot]\n" + PAIR + EXCUSE.replace('line = "return', 'line = "yield'))) == 2
    assert len(check("[hot]\n" + PAIR)) == 1


@needs_cython
def test_an_excuse_that_is_not_needed_fails(check):
    excuse = EXCUSE.replace('["create"]', '["create", "attribute"]')
    wrong = check("[hot]\n" + PAIR + excuse)
    assert wrong == [
        "vqshm.small:Counter.pair no longer needs to be excused for attribute: return self.total, self.total"
    ]


@needs_cython
def test_more_references_than_allowed_fail_and_fewer_are_told(check, tools, tmp_path, capsys):
    wrong = check("[hot]\n" + PAIR.replace("9", "0") + EXCUSE)
    assert len(wrong) == 1
    assert "counts references" in wrong[0]
    check("[hot]\n" + PAIR + EXCUSE)
    tools[0].run(tmp_path, tools[0].HotList.read(tmp_path / "list.toml"))
    assert (
        "fewer references than allowed, the list can be tightened: vqshm.small:Counter.pair" in capsys.readouterr().out
    )


@needs_cython
def test_a_function_that_is_not_there_fails(check):
    wrong = check('[hot]\n"vqshm.small:Counter.gone" = 0\n')
    assert wrong == ["vqshm.small:Counter.gone is listed, but Cython compiles no such function"]


@needs_cython
@pytest.mark.parametrize(
    ("source", "says"),
    [
        (SMALL.replace("raise RuntimeError(", "print("), "but it can return"),
        (SMALL.replace("_refuse", "_decline"), "nothing of that name is defined"),
    ],
)
def test_a_call_that_is_said_to_raise_must_raise(check, source, says):
    wrong = check(RAISES + "[hot]\n" + NOTE, source)
    assert len(wrong) == 1
    assert says in wrong[0]


def test_the_directives_are_those_of_the_build_hook(tools):
    directives = tools[0].directives()
    assert directives["annotation_typing"] is False
    assert directives["nonecheck"] is True


# -- reading generated C -----------------------------------------------------------------------------------------------


def generated(body, preamble=""):
    """A generated file with one function, vqshm.x:f, whose body begins at line 7 of its source."""
    marker = '/* "vqshm/x.py":{}\n * text             # <<<<<<<<<<<<<<\n*/\n'
    indented = textwrap.indent(textwrap.dedent(body), "  ")
    indented = re.sub(r"@(\d+)", lambda match: marker.format(match[1]), indented)
    return f"{preamble}\n{marker.format(7)}\nstatic int __pyx_f_5vqshm_1x_f(int __pyx_v_a) {{\n{indented}\n}}\n"


@pytest.fixture
def done(tools):
    """What `operations` finds in a C body: (line, kind, name)."""

    def does(body, cold=(), preamble=""):
        function = tools[1].find_function(generated(body, preamble), "vqshm.x:f")
        return [(o.line, o.kind, o.name) for o in tools[1].operations(function, cold)]

    return does


def test_operations_have_the_line_of_the_comment_before_them(done):
    found = done("@8\n  a = PyTuple_New(1);\n@9\n  b = PyNumber_Add(c, d);")
    assert found == [(8, "create", "PyTuple_New"), (9, "operate", "PyNumber_Add")]


def test_what_is_unlikely_is_cold_and_what_is_not_likely_too(done):
    assert done("if (unlikely(!a)) { PyTuple_New(1); }") == []
    assert done("if (likely(a)) { vq(1); } else { PyTuple_New(1); }") == []
    assert done("if (a) { PyTuple_New(1); }") == [(7, "create", "PyTuple_New")]
    assert done("if (unlikely((a = PyNumber_Add(b, c)) == NULL)) __PYX_ERR(0, 7, __pyx_L1_error)") == [
        (7, "operate", "PyNumber_Add")
    ]


def test_a_branch_that_can_only_end_in_an_error_is_cold(done):
    fails = (
        "{ PyTuple_New(1); if (b) { __Pyx_Raise(c); __PYX_ERR(0, 7, __pyx_L1_error) } __PYX_ERR(0, 8, __pyx_L1_error) }"
    )
    assert done(f"if (a) {fails}") == []
    returns = "{ PyTuple_New(1); if (b) return r; __PYX_ERR(0, 7, __pyx_L1_error) }"
    assert done(f"if (a) {returns}") == [(7, "create", "PyTuple_New")]


def test_an_error_check_asks_for_the_exception_only_if_it_follows_the_result(done):
    assert done("if (unlikely(a == -1 && PyErr_Occurred())) __PYX_ERR(0, 7, __pyx_L1_error)") == []
    assert done("if (unlikely(PyErr_Occurred())) __PYX_ERR(0, 7, __pyx_L1_error)") == [
        (7, "exception", "PyErr_Occurred")
    ]


def test_what_stands_behind_a_label_is_hot_if_a_hot_jump_leads_there(done):
    body = "goto __pyx_L0;\n__pyx_L1_error:;\nPyTuple_New(1);\n__pyx_L0:;\nPyList_New(1);\nreturn r;\n"
    assert done(body) == [(7, "create", "PyList_New")]
    assert done("if (unlikely(a)) __PYX_ERR(0, 7, __pyx_L1_error)\n" + body) == [(7, "create", "PyList_New")]


def test_a_jump_backwards_makes_hot_what_was_read_as_cold(done):
    body = "goto b;\na:;\nPyTuple_New(1);\nreturn r;\nb:;\nif (x) goto a;\nreturn r;\n"
    assert done(body) == [(7, "create", "PyTuple_New")]


def test_lines_that_the_caller_calls_cold_are_left_out(done):
    body = "@8\n  PyTuple_New(1);\n@9\n  PyList_New(1);"
    assert done(body, cold={("vqshm/x.py", 8)}) == [(9, "create", "PyList_New")]


def test_conditions_of_the_preprocessor_are_those_of_cpython(done):
    body = "#if CYTHON_COMPILING_IN_PYPY || !CYTHON_ASSUME_SAFE_MACROS\nPyTuple_New(1);\n#else\nPyList_New(1);\n#endif"
    assert done(body) == [(7, "create", "PyList_New")]
    assert done("#if PY_VERSION_HEX >= 0x030C0000\nPyTuple_New(1);\n#endif") == [(7, "create", "PyTuple_New")]


def test_reading_a_field_is_no_operation_and_counting_references_is_one(done):
    assert done("if (PyBytes_CheckExact(a)) n = PyBytes_GET_SIZE(a);") == []
    assert done("__Pyx_INCREF(a);\n__Pyx_DECREF_SET(b, a);\n__Pyx_GOTREF(a);") == [
        (7, "count", "__Pyx_INCREF"),
        (7, "count", "__Pyx_DECREF_SET"),
    ]


def test_a_method_is_named_by_the_class_that_its_table_belongs_to(done):
    preamble = "struct __pyx_vtabstruct_5vqshm_1x_B {\n  struct __pyx_vtabstruct_5vqshm_1x_A __pyx_base;\n};"
    own = "((struct __pyx_vtabstruct_5vqshm_1x_B *)s->__pyx_base.__pyx_vtab)->go(s);"
    inherited = "((struct __pyx_vtabstruct_5vqshm_1x_B *)s->__pyx_base.__pyx_vtab)->__pyx_base.go(s);"
    assert done(own, preamble=preamble) == [(7, "leaves", "vqshm.x.B.go")]
    assert done(inherited, preamble=preamble) == [(7, "leaves", "vqshm.x.A.go")]
    assert done("tp->tp_iternext(s);") == [(7, "call", "tp_iternext")]
