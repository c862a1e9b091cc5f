"""Reads the C that Cython generates: what a function does to Python objects on its hot path, and by which source line.

Hot is whatever an error-free call can reach. Cold, and left out, is

- a branch that Cython marks `unlikely`: the check of a result, a method that a subclass written in Python overrides;
- a branch that can end in an error only: `if …: raise …`;
- what can be reached from there only: the clean-up behind an error label, an `except` block;
- a source line that the caller calls cold.

Conditions of the preprocessor are decided as for CPython with its lock. Macros that only look at a field of a C struct
(`Py_TYPE`, `PyBytes_GET_SIZE` …) are no operation; counting references is one of a kind of its own.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

# The first pattern that is found in a name decides; the prefix __Pyx_ or __pyx_ is gone by then.
KINDS = {
    "": r"^RefNanny|^X?G(OT|IVE)REF$|^Py_TYPE$|HasFeature$|^Py\w+_Check(Exact)?$|^IsSameCFunction$"
    r"|_GET_(SIZE|LENGTH|ITEM|SELF|FUNCTION)$|_AS_STRING$",
    "count": r"^(Py_)?X?(IN|DE)CREF(_SET)?$|^(Py_)?X?CLEAR$|NewRef$",
    "thread": r"^PyEval_|FastGIL|^PyGILState|CriticalSection",
    "buffer": r"Buffer|MEMVIEW|emviewslice|memoryview",
    "create": r"^Py\w+_(New|From\w*|Pack|Join\w*|SET_ITEM)$|tp_new|^PyObject_GC_New",
    "convert": r"_As[A-Z_]\w*$|IsTrue|TypeTest",
    "attribute": r"[GS]etAttr|DelAttr|GetModuleGlobalName|GetBuiltinName|GetNameInClass|LookupSpecial",
    "call": r"Call|Vectorcall|MakeKwargDict|^t_\d+$",
    "exception": r"^PyErr_|^Err(Fetch|Restore)|Exception|Raise|AddTraceback|PyThreadState",
    "item": r"([GS]et|Del)Item|ITEM|Length|SIZE|Size|Append|Extend|Pop|Contains|Slice|Unpack|Iter|^Py(Dict|List|Set)_",
    "compare": r"RichCompare|Equals",
    "operate": r"",
}
LEAVES = "leaves"  # a call of another compiled function

_TOKEN = re.compile(
    r'/\* "(?P<file>[^"\n]+)":(?P<line>\d+)\n.*?\*/|/\*.*?\*/|//[^\n]*'
    r"|(?P<text>\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|\w+|->|&&|\|\||[^\s\w])",
    re.DOTALL,
)
_MARKER = re.compile(r'/\* "([^"\n]+)":(\d+)\n')
_WORD = re.compile(r"[A-Za-z_]\w*$")
_METHODS_OF = re.compile(r"__pyx_vtab(?:struct|ptr)_(\w+)$")
_BARE = {"__PYX_ERR": ")", "__Pyx_RefNannyDeclarations": "__Pyx_RefNannyDeclarations"}  # these end without ;
_NOT_CPYTHON = re.compile(r"CYTHON_(AVOID_\w+|REFNANNY|PROFILE|TRACE|COMPILING_IN_(?!CPYTHON$)\w+)$|__cplusplus$")


class Operation(NamedTuple):
    """Something done to a Python object, or a call of another compiled function."""

    file: str  # as it was given to Cython
    line: int
    kind: str
    name: str


class Function(NamedTuple):
    """A C function: where its source begins, its body, and each class of its module with its base."""

    file: str
    line: int
    body: str
    bases: dict[str, str]


def find_function(text: str, name: str) -> Function | None:
    """The C of `module:function` or `module:Class.method`: what computes, and not the wrapper that Python calls."""
    scope, last = _mangled(name)
    for mangled in (f"__pyx_f_{scope}{last}", f"__pyx_pf_{scope}[0-9]*{last}"):
        head = re.search(rf"^static [^;{{}}=#]*?\b{mangled}\([^;{{}}]*\) \{{\n", text, re.MULTILINE)
        if head is not None:
            markers = _MARKER.findall(text, max(0, head.start() - 8000), head.start())
            file, line = markers[-1] if markers else ("", "0")
            return Function(file, int(line), text[head.end() : text.index("\n}\n", head.end()) + 1], _bases(text))
    return None


def _bases(text: str) -> dict[str, str]:
    tables = re.findall(r"struct __pyx_vtabstruct_(\w+) \{\s*struct __pyx_vtabstruct_(\w+) __pyx_base;", text)
    return {_plain(name): _plain(base) for name, base in tables}


def _mangled(name: str) -> tuple[str, str]:
    module, _, qualified = name.partition(":")
    *scopes, last = [*module.split("."), *qualified.split(".")]
    return "".join(f"{len(scope)}{scope}_" for scope in scopes), last


def _plain(mangled: str) -> str:
    """`5vqshm_4ring_4walk_4Walk_step` → `vqshm.ring.walk.Walk.step`."""
    scopes = []
    while match := re.match(r"\d+", mangled):
        end = match.end() + int(match[0])
        scopes.append(mangled[match.end() : end])
        mangled = mangled[end:].removeprefix("_")
    return ".".join([*scopes, mangled])


def operations(function: Function, cold: Collection[tuple[str, int]] = ()) -> list[Operation]:
    """What a hot call does, in the order of the text; nothing for what stands on the source lines in `cold`."""
    walk = _Walk(_tokens(_preprocessed(function.body)), function, cold)
    known = -1
    while len(walk.reached) > known:  # once more while a jump backwards made a label hot
        known = len(walk.reached)
        walk.run()
    return walk.found


class _Token(NamedTuple):
    text: str  # "" for a marker
    file: str = ""
    line: int = 0


def _tokens(body: str) -> list[_Token]:
    found = []
    for match in _TOKEN.finditer(body):
        if match["line"]:
            found.append(_Token("", match["file"], int(match["line"])))
        elif match["text"]:
            found.append(_Token(match["text"]))
    return found


class _Walk:
    """Follows the statements of one body; `live` says whether a hot call comes here."""

    def __init__(self, tokens: list[_Token], function: Function, cold: Collection[tuple[str, int]]) -> None:
        self.tokens = tokens
        self.function = function
        self.cold = cold
        self.reached: set[str] = set()  # labels that a hot goto leads to
        self.found: list[Operation] = []

    def run(self) -> None:
        self.found = []
        self.exits = 0  # hot jumps that are no errors
        self.at = 0
        self.live = True
        self.source = (self.function.file, self.function.line)
        while self.peek():
            self.statement()

    def peek(self) -> str:
        """The next token, past markers; "" at the end."""
        while self.at < len(self.tokens) and not self.tokens[self.at].text:
            self.source = self.tokens[self.at].file, self.tokens[self.at].line
            self.at += 1
        return self.tokens[self.at].text if self.at < len(self.tokens) else ""

    def next(self) -> str:
        text = self.peek()
        if not text:
            raise ValueError(f"{self.function.file}:{self.function.line}: the generated C ends within a statement")
        self.at += 1
        return text

    def statement(self) -> None:
        first = self.peek()
        if first == "{":
            self.next()
            while self.peek() != "}":
                self.statement()
            self.next()
        elif first == "if":
            self.branch()
        elif first in {"while", "for", "switch"}:
            self.next()
            self.report(self.parenthesis())
            self.body(hot=True)
        elif first == "do":
            self.next()
            self.body(hot=True)
        elif first in {"case", "default"}:
            while self.next() != ":":
                pass
        else:
            self.plain()

    def body(self, *, hot: bool) -> bool:
        """A statement under a condition; whether a hot call comes out of it. `live` is as before."""
        before, self.live = self.live, self.live and hot
        found, exits = len(self.found), self.exits
        self.statement()
        after, self.live = self.live, before
        if not after and self.exits == exits:  # whoever comes here ends in an error
            del self.found[found:]
        return after

    def branch(self) -> None:
        self.next()
        condition = self.parenthesis()
        self.report(condition)
        says = "".join(condition[1:-1])
        unlikely = says.startswith(("unlikely(", "!likely(", "!(likely("))
        after = self.body(hot=not unlikely)
        otherwise = self.live
        if self.peek() == "else":
            self.next()
            otherwise = self.body(hot=not says.startswith("likely("))
        self.live = after or otherwise

    def parenthesis(self) -> list[str]:
        """Everything up to the matching one, both included."""
        taken = [self.next()]
        depth = 1
        while depth:
            taken.append(self.next())
            depth += (taken[-1] == "(") - (taken[-1] == ")")
        return taken

    def plain(self) -> None:
        """A declaration, an expression, a jump or a label."""
        taken: list[str] = []
        depth = 0
        while True:
            text = self.next()
            taken.append(text)
            depth += (text in "({[") - (text in ")}]") if len(text) == 1 else 0
            if depth == 0 and (text == ";" or (text == ":" and len(taken) == 2)):
                break
            if depth == 0 and text == _BARE.get(taken[0]):
                break
        if taken[-1] == ":":
            self.live = self.live or taken[0] in self.reached
        elif taken[0] == "goto":
            if self.live:
                self.exits += 1
                self.reached.add(taken[1])
            self.live = False
        else:
            self.report(taken)
            if taken[0] in {"return", "break", "continue"}:
                self.exits += self.live
                self.live = False
            elif taken[0] == "__PYX_ERR":
                self.live = False

    def report(self, taken: list[str]) -> None:
        """Note the calls among these tokens."""
        if not self.live or self.source in self.cold:
            return
        methods_of = outer = ""
        for before, text, after in zip(["", *taken], taken, [*taken[1:], ""], strict=False):
            if match := _METHODS_OF.match(text):
                methods_of = outer = _plain(match[1])
            elif text == "__pyx_vtab":
                methods_of = outer  # what came before was the way to the table, and not within it
            elif text == "__pyx_base" and methods_of:
                methods_of = self.function.bases.get(methods_of, methods_of)
            if text == "PyErr_Occurred" and before == "&&":
                continue  # asked only once the result looks like an error
            if after == "(" and _WORD.match(text):
                kind, name = _classify(text, method=before in {"->", "."}, methods_of=methods_of)
                if kind:
                    self.found.append(Operation(*self.source, kind, name))


def _classify(name: str, *, method: bool, methods_of: str) -> tuple[str, str]:
    if name.startswith("__pyx_f_"):
        return LEAVES, _plain(name.removeprefix("__pyx_f_"))
    if not re.match(r"_*Py|_*pyx", name):
        if method:
            return (LEAVES, f"{methods_of}.{name}") if methods_of else ("call", name)
        return "", name
    stem = re.sub(r"^__[Pp]yx_(?=.)", "", name)
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, stem)), name


# -- the preprocessor --------------------------------------------------------------------------------------------------


def _preprocessed(body: str) -> str:
    """The lines that CPython's compiler would see."""
    kept = []
    taken: list[tuple[bool, bool]] = []  # per open #if: is this branch seen, was one before
    for line in body.splitlines():
        directive = re.match(r"\s*#\s*(\w+)\s*(.*)", line)
        if directive is None:
            if all(seen for seen, _ in taken):
                kept.append(line)
            continue
        word, condition = directive[1], directive[2]
        if word in {"if", "ifdef", "ifndef"}:
            seen = _holds(condition if word == "if" else f"defined({condition})") != (word == "ifndef")
            taken.append((seen, seen))
        elif word in {"elif", "else"}:
            before = taken.pop()[1]
            seen = not before and (word == "else" or _holds(condition))
            taken.append((seen, before or seen))
        elif word == "endif":
            taken.pop()
    return "\n".join(kept)


def _holds(condition: str) -> bool:
    text = re.sub(r"\bdefined\s*\(\s*(\w+)\s*\)|\bdefined\s+(\w+)", r"\1\2", condition)
    text = re.sub(r"(?<=\d)[uUlL]+\b", "", text)
    text = re.sub(r"!(?!=)", " not ", text).replace("&&", " and ").replace("||", " or ")
    return bool(_value(ast.parse(text.strip(), mode="eval").body))


def _value(node: ast.expr) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name):
            return _macro(name)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand)
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_value(value) for value in values)
        case ast.BoolOp(values=values):
            return any(_value(value) for value in values)
        case ast.Compare(left=left, ops=[operator], comparators=[right]):
            a, b = _value(left), _value(right)
            by_name = {"Lt": a < b, "LtE": a <= b, "Gt": a > b, "GtE": a >= b, "Eq": a == b, "NotEq": a != b}
            return by_name[type(operator).__name__]
        case _:
            raise ValueError(f"a preprocessor condition that cannot be read: {ast.unparse(node)}")


def _macro(name: str) -> int:
    """What CPython 3.13 on Linux says: its fast roads are taken, those of other interpreters are not."""
    if name == "PY_VERSION_HEX":
        return 0x030D0000
    return 0 if _NOT_CPYTHON.match(name) else 1
