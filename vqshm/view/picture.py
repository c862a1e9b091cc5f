"""Picture: a split queue drawn as text, for somebody who wants to see what two processes are doing to it [2.7].

    print(draw(memory, SplitLayout.at(base, 8)))

A queue of up to 16 slots is drawn whole, the three areas side by side as they lie in memory; a larger one, or one on a
narrow screen, as strips with one sign for several slots. Every line fits into `width` columns.

    ●   in flight: offered by the driver, not yet returned by the device
    A   slot of avail.idx, the next the driver fills           a   slot of avail_event
    U   slot of used.idx, the next the device fills            u   slot of used_event
    !   what no correct driver or device would write

There are no colours here; whoever shows the text may add them.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Final

from vqshm import spec
from vqshm.view.image import Entry, read_ring

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vqshm.memory import GuestMemory
    from vqshm.ring import SplitLayout
    from vqshm.view.image import Chain, RingImage

WHOLE: Final = 16  # slots; larger queues are drawn as strips
MOST_CHAINS: Final = 6  # listed below the picture
MOST_PROBLEMS: Final = 5
FREE, SHADES, FULL, WRONG, BUSY = "·", "░▒▓", "█", "!", "●"
_BLANK: Final = Entry(0, 0, 0, 0)  # a descriptor that was never written
_U16: Final = 0xFFFF


def draw(
    memory: GuestMemory, layout: SplitLayout, *, event_idx: bool | None = True, width: int = 80, compact: bool = False
) -> str:
    """Draw a queue as it stands in memory, which is only read, so a read-only mapping will do.

    `event_idx`: whether VIRTIO_F_EVENT_IDX was negotiated, which says whether the events or the flags mean something;
    None before that.
    `width`: columns, at least 20. `compact`: strips, no list of chains, no legend.

    Whatever the areas hold is drawn. Raises GuestMemory where they do not lie in memory.
    """
    return render(read_ring(memory, layout), event_idx=event_idx, width=width, compact=compact)


def render(image: RingImage, *, event_idx: bool | None = True, width: int = 80, compact: bool = False) -> str:
    """Draw a queue that was read before; see `draw`."""
    width = max(width, 20)
    whole = _whole(image, width, event_idx=event_idx) if image.size <= WHOLE and not compact else None
    lines = [*_headline(image), "", *(whole or _strips(image, width, event_idx=event_idx))]
    lines += ["", *_wishes(image, event_idx=event_idx)]
    if image.chains and not compact:
        lines += ["", *_chain_list(image)]
    if image.problems:
        lines += ["", *_problem_list(image)]
    if not compact:
        lines += ["", *_legend(image, width, event_idx=event_idx, whole=whole is not None)]
    return "\n".join(piece.rstrip() for line in lines for piece in _fold(line, width))


# -- in words ----------------------------------------------------------------------------------------------------------


def _headline(image: RingImage) -> list[str]:
    count = image.claimed
    chains = {0: "no chain", 1: "1 chain"}.get(count, f"{count} chains")
    least = "at least " if image.out_of_sight else ""
    busy = f", {least}{len(image.owners)} of {image.size} descriptors" if count else ""
    state = {0: ": the queue is empty", image.size: ": the queue is full"}.get(count, "")
    lines = [f"{chains} in flight{busy}{state}"]
    if not image.steady:
        lines.append("(it moved while it was read: the parts are of slightly different moments)")
    elif image.chains and not image.in_order:
        lines.append("(the device returns chains in another order than they were offered)")
    if image.out_of_sight:
        lines.append(f"({image.out_of_sight} offered more than a lap ago: its slot in the ring holds another by now)")
    return lines


def _wishes(image: RingImage, *, event_idx: bool | None) -> list[str]:
    """Who wants to be woken, and by what [2.7.7, 2.7.10]."""
    if event_idx is None:
        return ["nothing is agreed yet about notifications"]
    if event_idx:
        avail, used = ("avail.idx", image.avail_idx), ("used.idx", image.used_idx)
        what = "chain offered kicks the device", "chain returned calls the driver"
        kick = _wish(("avail_event", image.avail_event), avail, image.size, what[0], "kick")
        call = _wish(("used_event", image.used_event), used, image.size, what[1], "call")
        return [kick, call]
    muted = image.used_flags & spec.VIRTQ_USED_F_NO_NOTIFY
    kick = f"used.flags {image.used_flags}: the device {'asks for no kicks' if muted else 'wants to be kicked'}"
    muted = image.avail_flags & spec.VIRTQ_AVAIL_F_NO_INTERRUPT
    call = f"avail.flags {image.avail_flags}: the driver {'asks for no calls' if muted else 'wants to be called'}"
    return [kick, call]


def _wish(event: tuple[str, int], idx: tuple[str, int], size: int, what: str, wake: str) -> str:
    ahead = (event[1] - idx[1]) & _U16
    if ahead < size:
        return f"{event[0]} {event[1]}: the {'' if not ahead else _ordinal(ahead + 1) + ' '}next {what}"
    return f"{event[0]} {event[1]} lies behind {idx[0]}: no {wake} is wanted"


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _chain_list(image: RingImage) -> list[str]:
    shown = image.chains[:MOST_CHAINS]
    places = [_place(chain) for chain in shown]
    widest = max(len(place) for place in places)
    lines = ["in flight, oldest first, with what the device may do:"]
    lines += [
        f"{WRONG if chain.problem else BUSY} {place:<{widest}}  {_sizes(chain)}"
        for chain, place in zip(shown, places, strict=True)
    ]
    if len(image.chains) > len(shown):
        lines.append(f"  … and {len(image.chains) - len(shown)} more")
    return lines


def _place(chain: Chain) -> str:
    parts = [str(part) for part in chain.parts[:6]] + (["…"] if len(chain.parts) > 6 else [])
    table = f" (a table of {chain.indirect})" if chain.indirect else ""
    return f"position {chain.position}: chain {' → '.join(parts) or chain.head}{table}"


def _sizes(chain: Chain) -> str:
    sizes = [("read", chain.readable), ("write", chain.writable)]
    return ", ".join(f"{what} {count:,} B" for what, count in sizes if count)


def _problem_list(image: RingImage) -> list[str]:
    lines = [f"{WRONG} {problem}" for problem in image.problems[:MOST_PROBLEMS]]
    if len(image.problems) > MOST_PROBLEMS:
        lines.append(f"{WRONG} … and {len(image.problems) - MOST_PROBLEMS} more")
    return lines


def _legend(image: RingImage, width: int, *, event_idx: bool | None, whole: bool) -> list[str]:
    entries = [f"{BUSY} in flight", "A avail.idx: the driver's next slot", "U used.idx: the device's next slot"]
    if event_idx:
        entries += ["a avail_event", "u used_event"]
    if whole:
        entries += ["R device reads", "W device writes"]
        if any(entry.indirect for entry in image.table):
            entries.append("I a table of more descriptors")
    else:
        entries[0] = f"{FREE}{SHADES}{FULL} share in flight, none to all"
    if image.problems or any(head >= image.size for head in image.heads):
        entries.append(f"{WRONG} impossible")
    return _fill(entries, width)


def _fill(entries: Sequence[str], width: int) -> list[str]:
    """Entries side by side, three blanks between them, as many to a line as fit."""
    lines = [entries[0]]
    for entry in entries[1:]:
        if len(lines[-1]) + 3 + len(entry) <= width:
            lines[-1] += "   " + entry
        else:
            lines.append(entry)
    return lines


def _fold(line: str, width: int) -> list[str]:
    """A line cut at blanks so that each piece fits; drawings are never this long, sentences may be."""
    pieces = []
    while len(line) > width:
        cut = line.rfind(" ", width // 2, width + 1)
        cut = width if cut < 0 else cut
        pieces.append(line[:cut])
        line = "    " + line[cut:].lstrip() if width > 30 else line[cut:].lstrip()
    return [*pieces, line]


# -- strips ------------------------------------------------------------------------------------------------------------


def _strips(image: RingImage, width: int, *, event_idx: bool | None) -> list[str]:
    """Both rings and the table as strips of the same scale."""
    labels = ("available", "used", "descriptors") if width >= 40 else ("avail", "used", "desc")
    margin = max(map(len, labels)) + 2
    room = width - margin
    each = 1  # slots to a sign: a power of two, so that every sign stands for as many
    while image.size > room * each:
        each *= 2
    signs = max(image.size // each, 1)
    busy_slots = {chain.position % image.size for chain in image.chains}
    wrong_slots = {chain.position % image.size for chain in image.chains if chain.problem}
    wrong_parts = {part for chain in image.chains if chain.problem for part in chain.parts}
    a, u = _markers(image, event_idx=event_idx)
    slots = f"{image.size} slots" + (f", {each} to a sign" if each > 1 else "")
    rows = [(labels[0], _strip(busy_slots, wrong_slots, signs, each)), *(("", row) for row in _pins(a, signs, each))]
    rows += [(labels[1], FREE * signs), *(("", row) for row in _pins(u, signs, each))]
    rows += [(labels[2], _strip(set(image.owners), wrong_parts, signs, each))]
    return [f"{'':<{margin}}{slots}", *(f"{label:<{margin}}{row}" for label, row in rows)]


def _markers(image: RingImage, *, event_idx: bool | None) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """(sign, slot) of what points into the available ring, and of what points into the used ring."""
    a, u = [("A", image.avail_idx % image.size)], [("U", image.used_idx % image.size)]
    if event_idx:
        a.append(("a", image.avail_event % image.size))
        u.append(("u", image.used_event % image.size))
    return a, u


def _strip(busy: set[int], wrong: set[int], signs: int, each: int) -> str:
    counts = [0] * signs
    for slot in busy:
        counts[slot // each] += 1
    marked = {slot // each for slot in wrong}
    return "".join(WRONG if i in marked else _shade(count, each) for i, count in enumerate(counts))


def _shade(count: int, each: int) -> str:
    if not count:
        return FREE
    return FULL if count == each else SHADES[(count * len(SHADES) - 1) // each]


def _pins(markers: Sequence[tuple[str, int]], signs: int, each: int) -> list[str]:
    """Lines under a strip on which each marker stands below its slot; a second line where two would collide."""
    lines: list[list[str]] = []
    for sign, slot in markers:
        column = slot // each
        for line in lines:
            if line[column] == " ":
                line[column] = sign
                break
        else:
            lines.append([" "] * signs)
            lines[-1][column] = sign
    return ["".join(line) for line in lines]


# -- whole -------------------------------------------------------------------------------------------------------------

_FIRST_SLOT: Final = 6  # line of slot 0: below title, border, flags, idx, rule, heading
_TABLE_FIRST: Final = 4  # the same of descriptor 0: below title, border, heading, rule
_RULE: Final = "\0"  # a line across a box


def _whole(image: RingImage, width: int, *, event_idx: bool | None) -> list[str] | None:
    """The three areas as boxes, slot by slot; None if they do not fit, not even one below the other."""
    a, u = _markers(image, event_idx=event_idx)
    busy = {chain.position % image.size for chain in image.chains}
    slots = range(image.size)
    avail = _box(
        "available ring",
        [_field("flags", image.avail_flags), _field("idx", image.avail_idx), _RULE, "   head"]
        + [_head(image, slot, in_flight=slot in busy) for slot in slots]
        + [_RULE, _field("used_event", image.used_event)],
        "driver writes",
    )
    wide = len("avail_event")
    used = _box(
        "used ring",
        [_field("flags", image.used_flags, wide), _field("idx", image.used_idx, wide), _RULE, "    id  written"]
        + [_returned(image, slot) for slot in slots]
        + [_RULE, _field("avail_event", image.avail_event, wide)],
        "device writes",
    )
    table = _box("descriptor table", _table(image), "driver writes")
    blank = [""] * _FIRST_SLOT
    left = [*blank, *(f"{_pin(a, slot)}{slot:>2} " for slot in slots)]
    middle = [*blank, *(_pin(u, slot) for slot in slots)]
    rings = [left, avail, middle, used]
    lower = _FIRST_SLOT - _TABLE_FIRST
    beside = _beside([*rings, [" "], [""] * lower + table])
    if _widest(beside) <= width:
        return beside
    indices = [*blank[lower:], *(f"{slot:>5} " for slot in slots)]
    below = [*_beside(rings), "", *_beside([indices, table])]
    return below if _widest(below) <= width else None


def _box(title: str, rows: Sequence[str], writer: str) -> list[str]:
    """A frame around rows, a title above and who writes it below."""
    inner = _widest(rows) + 2
    framed = [f"├{'─' * inner}┤" if row == _RULE else f"│ {row:<{inner - 2}} │" for row in rows]
    return [f"  {title}", f"╭{'─' * inner}╮", *framed, f"╰{'─' * inner}╯", f"  {writer}"]


def _beside(columns: Sequence[Sequence[str]]) -> list[str]:
    """Columns of lines side by side."""
    widths = [_widest(column) for column in columns]
    return [
        "".join(f"{cell:<{wide}}" for cell, wide in zip(row, widths, strict=True)).rstrip()
        for row in zip_longest(*columns, fillvalue="")
    ]


def _widest(lines: Sequence[str]) -> int:
    return max(map(len, lines))


def _pin(markers: Sequence[tuple[str, int]], slot: int) -> str:
    """The markers that point at a slot, and an arrow: three columns."""
    signs = "".join(sign for sign, at in reversed(markers) if at == slot)
    return f"{signs + '▸' if signs else '':>3}"


def _field(name: str, value: int, wide: int = len("used_event")) -> str:
    return f"{name:<{wide}} {value:>5}"


def _head(image: RingImage, slot: int, *, in_flight: bool) -> str:
    head = image.heads[slot]
    if not head and image.avail_idx <= slot:
        return f" {FREE:>6}"  # the first lap has not come this far
    sign = WRONG if head >= image.size else BUSY if in_flight else " "
    return f"{sign}{head:>6}"


def _returned(image: RingImage, slot: int) -> str:
    number, written = image.used[slot]
    if not (number or written) and image.used_idx <= slot:
        return f" {FREE:>5}"
    sign = WRONG if number >= image.size else " "
    return f"{sign}{_short(number, 5):>5} {_short(written, 6):>7} B"


def _short(number: int, digits: int) -> str:
    """A number in full if it has no more digits, else in larger units."""
    units = iter(("", "Ki", "Mi", "Gi", "Ti"))
    unit = next(units)
    while len(f"{number}{unit}") > digits:
        number, unit = number >> 10, next(units)
    return f"{number}{unit}"


def _table(image: RingImage) -> list[str]:
    """A heading and a line for each descriptor."""
    wrong = {part for chain in image.chains if chain.problem for part in chain.parts}
    addresses = [f"{entry.addr:#x}" if entry != _BLANK else FREE for entry in image.table]
    wide = max(10, *map(len, addresses))
    rows = [f"  {'address':<{wide}} length  next", _RULE]
    for index, (entry, address) in enumerate(zip(image.table, addresses, strict=True)):
        sign = WRONG if index in wrong else BUSY if index in image.owners else " "
        length = _short(entry.len, 6) if entry != _BLANK else FREE
        rows.append(f"{sign} {address:<{wide}} {length:>6} {_kind(entry)} {_link(entry, image.size):<3}")
    return rows


def _kind(entry: Entry) -> str:
    if entry == _BLANK:
        return " "
    return "I" if entry.indirect else "W" if entry.writable else "R"


def _link(entry: Entry, size: int) -> str:
    if entry.following is None:
        return ""
    return f"→{entry.following}" if entry.following < size else f"→{WRONG}"
