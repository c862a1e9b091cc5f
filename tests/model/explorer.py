"""Explorer: all orders in which two programs over one shared memory can go on, with the real source of the rings.

What is explored is the interpreted source as it stands. Its ordering seam (`vqshm.memory.atomic`) is turned round: each
load, store and fence of shared memory becomes a step of a machine, whose scheduler is an exhaustive search.

A side, driver or device, is a function that is deterministic but for what it reads: so it is known completely by what
it does after each sequence of answers. It is run alone, from its start, with the answers of one history; at the first
question to which there is no answer yet it is abandoned. What it did since the last answer, and that question, are the
next node of its tree. No threads, no baton, and no history is run twice.

A state of the machine is where each side stands in its tree, and what the memory model keeps. States are visited once;
as histories only grow there are no cycles, so the number of orders is counted by the way.

    no move left, and somebody still waits      a lost wake-up: `Violation`
    a side raises                               its own checks are the properties: `Violation`
    a side asks more than `patience` times      it spins: `Violation`

Memory models (`memory_models`): sequential consistency, x86-TSO with explicit store buffers, C11 release/acquire.
A side can have heirs: at any step it may be killed, and the next incarnation takes over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vqshm import core
from vqshm.memory import GuestMemory, Region, atomic


class Violation(AssertionError):
    """A property does not hold in some order; `trace` has the steps that lead there."""

    def __init__(self, what: str, trace: Sequence[str]) -> None:
        super().__init__("\n".join([what, *(f"  {step}" for step in trace)]))
        self.what = what
        self.trace = list(trace)


class Abandoned(BaseException):
    """Unwinds a side that asked something nobody can answer yet."""


@dataclass
class Scenario:
    """Sides that share `image`, the bytes from guest address `base` on."""

    name: str
    base: int
    image: bytes
    sides: dict[str, Callable[[World], Any]]
    check: Callable[[dict[str, Any], bytes], None] = lambda _values, _image: None  # of what the sides returned
    spurious: int = 0  # wake-ups for nothing, for all sides together
    kills: int = 0  # for all sides together
    heirs: dict[str, list[Callable[[World], Any]]] = field(default_factory=dict)  # who follows a side that was killed
    may_sleep: frozenset[str] = frozenset()  # who may wait for ever, once everybody else is done

    def __str__(self) -> str:
        return self.name


@dataclass
class Result:
    """What an exploration saw."""

    states: int
    orders: int
    histories: int  # of all sides together: how often their code was run

    def __str__(self) -> str:
        return f"{self.states:,} states, {self.orders:.2e} orders, {self.histories:,} runs of a side"


# -- one side ----------------------------------------------------------------------------------------------------------


class World:
    """What a side has in its hands: the shared memory, and doorbells."""

    def __init__(self, base: int, size: int) -> None:
        self.memory = SharedMemory(self, base, size)
        self.bases: dict[Region, int] = {self.memory.regions[0].window: base}  # windows that payloads go through
        self._answers: tuple[Any, ...] = ()
        self._next = 0
        self._done: list[tuple[Any, ...]] = []
        self._question: tuple[Any, ...] | None = None

    def run(self, side: Callable[[World], Any], answers: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """What `side` does after the last of these answers, and what it asks then."""
        self._answers, self._next, self._done, self._question = answers, 0, [], None
        try:
            end = ("done", side(self))
        except Abandoned:
            end = ()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what the exploration is after
            end = ("failed", error)
        return tuple(self._done), self._question or end

    def ask(self, *question: Any) -> Any:
        """The answer, if it is known by now."""
        if self._question is not None:
            raise Abandoned
        if self._next == len(self._answers):
            self._question = question
            raise Abandoned
        self._next += 1
        self._done.clear()
        return self._answers[self._next - 1]

    def tell(self, *step: Any) -> None:
        """Do what has no answer."""
        if self._question is None:  # else a handler of the code runs while it is unwound
            self._done.append(step)

    def read(self, address: int, count: int) -> bytes:
        """Bytes of a buffer."""
        answer: bytes = self.ask("load", address, count, False)
        return answer

    def write(self, address: int, data: bytes) -> None:
        """Store bytes to a buffer."""
        self.tell("store", address, bytes(data), False)

    def ring(self, bell: str) -> None:
        """Signal a doorbell."""
        self.tell("ring", bell)

    def wait(self, bell: str, *, timed: bool = False) -> None:
        """Sleep until a doorbell was rung; `timed`: or some time has passed."""
        self.ask("wait", bell, timed)


class SharedMemory(GuestMemory):
    """Guest memory whose ring areas are reached word by word, through the world."""

    def __init__(self, world: World, base: int, size: int) -> None:
        super().__init__([(base, bytearray(size))])
        self._world = world

    def window(self, address: int, count: int, alignment: int) -> Region:
        return Region(bytearray(), 0, 0, _Tap(self._world, address))


class _Tap:
    def __init__(self, world: World, address: int) -> None:
        self.world = world
        self.address = address

    def load(self, offset: int, width: int) -> int:
        return int.from_bytes(self.world.ask("load", self.address + offset, width, True), "little")

    def get(self, offset: int, width: int) -> int:
        return int.from_bytes(self.world.ask("load", self.address + offset, width, False), "little")

    def store(self, offset: int, width: int, value: int) -> None:
        self.world.tell("store", self.address + offset, value.to_bytes(width, "little"), True)

    def put(self, offset: int, width: int, value: int) -> None:
        self.world.tell("store", self.address + offset, value.to_bytes(width, "little"), False)


@contextlib.contextmanager
def turned_round(world: World):
    """While this holds, fences and the copying of payloads are steps of the machine, too."""
    if core.kind() != "interpreted":
        raise RuntimeError("only the interpreted core can be explored: set VQSHM_PURE=1")
    real = {name: getattr(atomic, name) for name in ("fence", "copy", "fill")}

    def copy(region: Region, offset: int, count: int) -> bytes:
        base = world.bases.get(region)
        return real["copy"](region, offset, count) if base is None else world.read(base + offset, count)

    def fill(region: Region, offset: int, data: Any, count: int) -> None:
        base = world.bases.get(region)
        if base is None:
            real["fill"](region, offset, data, count)
        else:
            world.write(base + offset, bytes(data))

    atomic.fence, atomic.copy, atomic.fill = lambda: world.tell("fence"), copy, fill
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(atomic, name, function)


class _Tree:
    """What one side does after each history. A node: (steps without an answer, the question behind them)."""

    def __init__(self, world: World, side: Callable[[World], Any]) -> None:
        self._world = world
        self._side = side
        self._histories: list[tuple[Any, ...]] = []
        self._next: list[dict[Any, int]] = []
        self.steps: list[tuple[Any, ...]] = []
        self.question: list[tuple[Any, ...]] = []
        self._add(())

    def _add(self, history: tuple[Any, ...]) -> int:
        steps, question = self._world.run(self._side, history)
        self._histories.append(history)
        self._next.append({})
        self.steps.append(steps)
        self.question.append(question)
        return len(self.steps) - 1

    def after(self, node: int, answer: Any) -> int:
        """The node behind the question of `node`."""
        following = self._next[node].get(answer)
        if following is None:
            following = self._next[node][answer] = self._add((*self._histories[node], answer))
        return following

    def asked(self, node: int) -> int:
        return len(self._histories[node])

    def __len__(self) -> int:
        return len(self.steps)


# -- the machine -------------------------------------------------------------------------------------------------------


class Explorer:
    """One exploration of `scenario` under a memory model. Raises Violation; RuntimeError at `limit` states.

    `preemptions`: how often a side that could go on may be made to wait for another one; None: as often as can be. Most
    errors need one or two, and three sides have too many orders to try them all. Delays of stores cost nothing.
    """

    def __init__(
        self,
        scenario: Scenario,
        model: Any,
        *,
        preemptions: int | None = None,
        patience: int = 300,
        limit: int = 3_000_000,
    ) -> None:
        self._scenario = scenario
        self._model = model
        self._preemptions = preemptions
        self._patience = patience
        self._limit = limit
        self._names = list(scenario.sides)
        self._world = World(scenario.base, len(scenario.image))
        self._trees: list[list[_Tree]] = []  # per side: one per incarnation

    def run(self) -> Result:
        """Visit everything."""
        scenario = self._scenario
        with turned_round(self._world):
            self._trees = [
                [_Tree(self._world, code) for code in (side, *scenario.heirs.get(name, ()))]
                for name, side in scenario.sides.items()
            ]
            start = (
                tuple((0, 0, 0) for _ in self._names),  # per side: incarnation, node, steps of it that are done
                self._model.start(scenario.base, scenario.image, len(self._names)),
                scenario.spurious,
                scenario.kills,
                (-1, self._preemptions),  # whose turn it is, preemptions left
            )
            for side in range(len(self._names)):
                start = self._go_on(start, side, [])
            return self._search(start)

    def _search(self, start: Any) -> Result:
        orders: dict[Any, int] = {}
        path: list[list[Any]] = [[start, self._moves(start), 0, ""]]  # state, moves left, orders so far, how it came
        while path:
            top = path[-1]
            if not top[1]:
                total = top[2] or self._end(top[0], path)
                orders[top[0]] = total
                path.pop()
                if path:
                    path[-1][2] += total
                continue
            label, state, side = top[1].pop()
            state = self._go_on(state, side, path, label)
            known = orders.get(state)
            if known is None:
                if len(orders) > self._limit:
                    raise RuntimeError(f"{self._scenario.name}: more than {self._limit:,} states")
                path.append([state, self._moves(state), 0, label])
            else:
                top[2] += known
        return Result(len(orders), orders[start], sum(len(tree) for trees in self._trees for tree in trees))

    def _go_on(self, state: Any, side: int, path: list[list[Any]], label: str = "") -> Any:
        """Do what no order matters for, with TSO: fill the store buffer, pass an idle fence, read one's own store."""
        sides, memory, *rest = state
        incarnation, node, done = sides[side]
        tree, model = self._trees[side][incarnation], self._model
        while True:
            steps = tree.steps[node]
            while done < len(steps):
                kind, *arguments = steps[done]
                if kind in model.moving:
                    break
                following = getattr(model, kind)(memory, side, *arguments)
                if following is None:  # a fence that must wait
                    break
                memory, done = following, done + 1
            question = tree.question[node]
            if done < len(steps) or question[0] != "load":
                break
            own = model.own(memory, side, question[1], question[2])
            if own is None:
                break
            node, done = tree.after(node, own), 0
        if question[0] == "failed" and done == len(steps):
            error = question[1]
            raise Violation(f"{self._names[side]} raised {error!r}", self._trace(path, label)) from error
        if tree.asked(node) > self._patience:
            raise Violation(f"{self._names[side]} does not come to an end", self._trace(path, label))
        return self._with(sides, side, incarnation, node, done), memory, *rest

    def _moves(self, state: Any) -> list[tuple[str, Any, int]]:
        """(what, the state after it, whose turn) of everything that can happen next."""
        sides, memory, spurious, kills, (turn, left) = state
        moves: list[tuple[str, Any, int]] = []
        own = [list(self._answers(state, side)) for side in range(len(sides))]
        for side, name in enumerate(self._names):
            for what, after in self._model.moves(memory, side):
                moves.append((f"{name}: {what}", (sides, after, spurious, kills, (turn, left)), side))
            clock = (turn, left)
            if left is not None and own[side] and side != turn:
                preempts = turn >= 0 and bool(own[turn])
                if preempts and not left:
                    continue
                clock = (side, left - preempts)
            deaths = self._deaths(state, side) if kills else ()
            moves += [(f"{name}: {what}", (*after, clock), side) for what, after in (*deaths, *own[side])]
        return moves

    def _answers(self, state: Any, side: int) -> Iterator[tuple[str, Any]]:
        """What a side's next step may be: something that others notice, an answer, waking up."""
        sides, memory, spurious, kills, _ = state
        incarnation, node, done = sides[side]
        tree = self._trees[side][incarnation]
        if done < len(tree.steps[node]):
            kind, *arguments = tree.steps[node][done]
            after = getattr(self._model, kind)(memory, side, *arguments)
            if after is not None:
                yield kind, (self._with(sides, side, incarnation, node, done + 1), after, spurious, kills)
            return
        kind, *question = tree.question[node]
        if kind == "load":
            address, count, acquire = question
            for value, after in self._model.loads(memory, side, address, count, acquire):
                following = self._with(sides, side, incarnation, tree.after(node, value), 0)
                yield f"loads {value.hex()} from {self._where(address)}", (following, after, spurious, kills)
        elif kind == "wait":
            bell, timed = question
            woken = self._with(sides, side, incarnation, tree.after(node, None), 0)
            heard = self._model.hear(memory, side, bell)
            if heard is not None:
                yield f"woken by {bell}", (woken, heard, spurious, kills)
            elif timed:
                yield "its time is over", (woken, memory, spurious, kills)
            elif spurious:
                yield "woken for nothing", (woken, memory, spurious - 1, kills)

    def _deaths(self, state: Any, side: int) -> Iterator[tuple[str, Any]]:
        """A side that has an heir, and is not at its end, may be killed."""
        sides, memory, spurious, kills, _ = state
        incarnation, node, done = sides[side]
        tree = self._trees[side][incarnation]
        ended = tree.question[node][0] == "done" and done == len(tree.steps[node])
        if not ended and incarnation + 1 < len(self._trees[side]):
            heir = self._with(sides, side, incarnation + 1, 0, 0)
            for what, after in self._model.deaths(memory, side):
                yield what, (heir, after, spurious, kills - 1)

    def _end(self, state: Any, path: list[list[Any]]) -> int:
        """Nothing can happen any more."""
        sides, memory, *_ = state
        values: dict[str, Any] = {}
        asleep = []
        for name, trees, (incarnation, node, _) in zip(self._names, self._trees, sides, strict=True):
            question = trees[incarnation].question[node]
            if question[0] == "done":
                values[name] = question[1]
            elif name not in self._scenario.may_sleep:
                asleep.append(f"{name} sleeps for ever, waiting for {question[1]}")
        if asleep:
            raise Violation("; ".join(asleep), self._trace(path))
        try:
            self._scenario.check(values, self._model.image(memory))
        except AssertionError as error:
            raise Violation(f"at the end: {error}", self._trace(path)) from error
        return 1

    @staticmethod
    def _with(sides: Any, side: int, incarnation: int, node: int, done: int) -> Any:
        """Where all sides stand, with one of them here."""
        return (*sides[:side], (incarnation, node, done), *sides[side + 1 :])

    def _where(self, address: int) -> str:
        return f"+{address - self._scenario.base:#x}"

    @staticmethod
    def _trace(path: list[list[Any]], last: str = "") -> list[str]:
        return [step[3] for step in path if step[3]] + ([last] if last else [])
