"""Pickles taken apart, never loaded: what a pickle would call becomes an inert record of the call.

Promise: nothing is imported, called or looked up by a name that stands in the pickle; every byte is read once, nothing
recurses, and a number, a line and the number of instructions are bounded, so that time and memory are linear in the
bytes. Dicts are lists of pairs: no key of a stranger is hashed. Limit: protocols 0 to 5 without the extension registry
and out-of-band buffers.

Sources: Lib/pickle.py and Lib/pickletools.py (CPython 3.13), which describe every instruction.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from weightport.errors import BudgetExceeded, FormatError

_MAX_LINE = 1 << 20
_MAX_DIGITS = 100
_MAX_NUMBER = 1 << 10  # bytes of one whole number
#: Instructions of one pickle, whatever the budget: 400,000 tensors and their optimizer's slots take so many.
MAX_STEPS = 1 << 25


class Global:
    """A name that the pickle speaks of; what it would be is nobody's business here."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Pairs(list[tuple[Any, Any]]):
    """A dict as its keys and values, in order."""

    __slots__ = ()


class Thing:
    """What would be made by calling ``of`` with ``args``, and what would then be done to it.

    Attributes:
        of: usually a :class:`Global`.
        state: what its ``__setstate__`` would get.
        items, pairs: what would be appended to it, and set in it by key.
    """

    __slots__ = ("args", "items", "of", "pairs", "state")

    def __init__(self, of: Any, args: Any = ()) -> None:
        self.of, self.args = of, args
        self.state: Any = None
        self.items: Sequence[Any] = ()
        self.pairs: Sequence[tuple[Any, Any]] = ()

    def named(self, *names: str) -> bool:
        """Whether it would be made by one of these, named in full."""
        return isinstance(self.of, Global) and str(self.of) in names


class Malformed(Exception):
    """What is wrong with the pickle where it stands; calls and persistent ids may raise it too."""


class Short(Exception):
    """The bytes end before the pickle does."""


#: What a known global makes of its arguments; ``NotImplemented`` where it is not known.
Call = Callable[[Global, Any], Any]
#: What a persistent id stands for.
Persistent = Callable[[Any], Any]


def parse(
    data: bytes, at: int, path: object, *, base: int = 0, call: Call, persistent: Persistent, steps: int = MAX_STEPS
) -> tuple[Any, int]:
    """The object of the pickle that begins at ``at``, and where it ends.

    Args:
        path: the file that errors name.
        base: where in that file ``data`` begins.
        call: asked for the calls of globals.
        persistent: asked for persistent ids.
        steps: the most instructions.

    Raises:
        Short: ``data`` ends before the pickle.
        FormatError: malformed, or more than the bounds allow.
    """
    machine = _Machine(data, at, call, persistent)
    end = len(data)
    try:
        for _ in range(min(steps, MAX_STEPS)):
            machine.start = position = machine.at
            if position >= end:
                raise Short
            machine.at += 1
            opcode = data[position]
            if opcode == _STOP:
                return machine.pop(), machine.at
            step = _OPCODES.get(opcode)
            if step is None:
                raise Malformed(f"the instruction {opcode:#04x} does not exist")
            step(machine)
    except Malformed as error:
        what = str(error)
    except IndexError:
        what = "it takes what is not there"
    except KeyError:
        what = "it refers to what is not there"
    except ValueError:
        what = "no text, or no number"
    else:
        raise BudgetExceeded(path, f"a pickle of more than {steps:,} instructions", offset=base + machine.start)
    raise FormatError(path, f"no valid pickle: {what}", offset=base + machine.start)


class _Machine:
    """The stack of a pickle."""

    __slots__ = ("at", "call", "data", "marks", "memo", "persistent", "stack", "start")

    def __init__(self, data: bytes, at: int, call: Call, persistent: Persistent) -> None:
        self.data, self.at, self.start = data, at, at
        self.call, self.persistent = call, persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    # Bytes -----------------------------------------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise Short
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self, limit: int = _MAX_LINE) -> bytes:
        end = self.data.find(b"\n", self.at, self.at + limit)
        if end < 0:
            if self.at + limit > len(self.data):
                raise Short
            raise Malformed(f"a line of more than {limit:,} bytes")
        piece = self.data[self.at : end]
        self.at = end + 1
        return piece

    # The stack -------------------------------------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    # Numbers and text ------------------------------------------------------------------------------------------------

    def int_line(self) -> None:
        text = self.line(_MAX_DIGITS).strip()
        self.push(text == b"01" if text in (b"00", b"01") else int(text))

    def long_line(self) -> None:
        self.push(int(self.line(_MAX_DIGITS).strip().removesuffix(b"L")))

    def float_line(self) -> None:
        self.push(float(self.line(_MAX_DIGITS)))

    def long(self, size: int) -> None:
        count = self.number(size)
        if count > _MAX_NUMBER:
            raise Malformed(f"a number of {count:,} bytes")
        self.push(int.from_bytes(self.take(count), "little", signed=True))

    def text(self, size: int) -> None:
        self.push(self.take(self.number(size)).decode("utf-8", "surrogatepass"))

    def old_text(self, raw: bytes) -> None:
        """Text of Python 2, which was bytes."""
        try:
            self.push(raw.decode("utf-8"))
        except UnicodeDecodeError:
            self.push(raw.decode("latin-1"))

    # Containers ------------------------------------------------------------------------------------------------------

    def append(self, values: list[Any]) -> None:
        holder = self.stack[-1]
        if type(holder) is list:
            holder.extend(values)
        elif type(holder) is Thing:
            holder.items = _more(holder.items, values)
        elif values:
            raise Malformed("items are put into what holds none")

    def set_items(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise Malformed("a key without a value")
        pairs = zip(values[::2], values[1::2], strict=True)
        holder = self.stack[-1]
        if type(holder) is Pairs:
            holder.extend(pairs)
        elif type(holder) is Thing:
            holder.pairs = _more(holder.pairs, pairs)
        elif values:
            raise Malformed("keys are set in what has none")

    def dict_of_mark(self) -> None:
        values = self.pop_mark()
        self.push(Pairs())
        self.set_items(values)

    def set_item(self) -> None:
        value = self.pop()
        self.set_items([self.pop(), value])

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def set_of_mark(self) -> None:
        made = Thing(_SET)
        made.items = self.pop_mark()
        self.push(made)

    # Objects ---------------------------------------------------------------------------------------------------------

    def global_lines(self) -> None:
        module = self.line().decode("utf-8")
        self.push(Global(module, self.line().decode("utf-8")))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Malformed("a global whose name is no text")
        self.push(Global(module, name))

    def reduce(self) -> None:
        args = self.pop()
        of = self.pop()
        made = self.call(of, args) if type(of) is Global else NotImplemented
        self.push(Thing(of, args) if made is NotImplemented else made)

    def new_with_keywords(self) -> None:
        keywords, args = self.pop(), self.pop()
        self.push(Thing(self.pop(), args))
        if type(keywords) is Pairs:
            self.stack[-1].pairs = keywords

    def inst(self) -> None:
        module, name = self.line().decode("utf-8"), self.line().decode("utf-8")
        args = tuple(self.pop_mark())
        self.push(Thing(Global(module, name), args))

    def obj(self) -> None:
        of, *args = self.pop_mark() or [None]
        self.push(Thing(of, tuple(args)))

    def build(self) -> None:
        state = self.pop()
        if type(self.stack[-1]) is Thing:
            self.stack[-1].state = state

    def remember(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def recall(self, key: int) -> None:
        self.push(self.memo[key])

    def load_persistent(self, key: Any) -> None:
        self.push(self.persistent(key))

    def frame(self) -> None:
        self.take(8)  # how many bytes to read ahead: they are all here

    def refuse(self, what: str) -> None:
        raise Malformed(f"{what} is not supported")


_STOP = ord(".")
_SET = Global("builtins", "set")


def _more(held: Sequence[Any], values: Iterable[Any]) -> list[Any]:
    """The same list where there is one already: adding one by one stays linear."""
    if not isinstance(held, list):
        held = list(held)
    held.extend(values)
    return held


_Step = Callable[[_Machine], Any]


def _doing(name: str, *args: Any) -> _Step:
    method = getattr(_Machine, name)
    if not args:
        return method  # type: ignore[no-any-return]
    return lambda machine: method(machine, *args)


def _pushing(make: Callable[[_Machine], Any]) -> _Step:
    return lambda machine: machine.push(make(machine))


def _mark(machine: _Machine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


_OPCODES: dict[int, _Step] = {
    ord("("): _mark,
    ord("0"): lambda m: m.pop() if m.stack else m.pop_mark(),
    ord("1"): _doing("pop_mark"),
    ord("2"): _pushing(lambda m: m.stack[-1]),
    ord("F"): _doing("float_line"),
    ord("I"): _doing("int_line"),
    ord("J"): _pushing(lambda m: int.from_bytes(m.take(4), "little", signed=True)),
    ord("K"): _pushing(lambda m: m.number(1)),
    ord("L"): _doing("long_line"),
    ord("M"): _pushing(lambda m: m.number(2)),
    ord("N"): _pushing(lambda _: None),
    ord("P"): lambda m: m.load_persistent(m.line().decode("utf-8")),
    ord("Q"): lambda m: m.load_persistent(m.pop()),
    ord("R"): _doing("reduce"),
    ord("S"): lambda m: m.old_text(m.line().strip()[1:-1]),
    ord("T"): lambda m: m.old_text(m.take(m.number(4))),
    ord("U"): lambda m: m.old_text(m.take(m.number(1))),
    ord("V"): _pushing(lambda m: m.line().decode("raw_unicode_escape")),
    ord("X"): _doing("text", 4),
    ord("a"): lambda m: m.append([m.pop()]),
    ord("b"): _doing("build"),
    ord("c"): _doing("global_lines"),
    ord("d"): _doing("dict_of_mark"),
    ord("}"): _pushing(lambda _: Pairs()),
    ord("e"): lambda m: m.append(m.pop_mark()),
    ord("g"): lambda m: m.recall(int(m.line(_MAX_DIGITS))),
    ord("h"): lambda m: m.recall(m.number(1)),
    ord("i"): _doing("inst"),
    ord("j"): lambda m: m.recall(m.number(4)),
    ord("l"): lambda m: m.push(m.pop_mark()),
    ord("]"): _pushing(lambda _: []),
    ord("o"): _doing("obj"),
    ord("p"): lambda m: m.remember(int(m.line(_MAX_DIGITS))),
    ord("q"): lambda m: m.remember(m.number(1)),
    ord("r"): lambda m: m.remember(m.number(4)),
    ord("s"): _doing("set_item"),
    ord("t"): lambda m: m.push(tuple(m.pop_mark())),
    ord(")"): _pushing(lambda _: ()),
    ord("u"): lambda m: m.set_items(m.pop_mark()),
    ord("G"): _pushing(lambda m: struct.unpack(">d", m.take(8))[0]),
    ord("B"): _pushing(lambda m: m.take(m.number(4))),
    ord("C"): _pushing(lambda m: m.take(m.number(1))),
    0x80: lambda m: m.take(1),  # PROTO
    0x81: lambda m: m.push(Thing(*reversed((m.pop(), m.pop())))),  # NEWOBJ
    0x82: _doing("refuse", "the extension registry"),
    0x83: _doing("refuse", "the extension registry"),
    0x84: _doing("refuse", "the extension registry"),
    0x85: _doing("tuple_of", 1),
    0x86: _doing("tuple_of", 2),
    0x87: _doing("tuple_of", 3),
    0x88: _pushing(lambda _: True),
    0x89: _pushing(lambda _: False),
    0x8A: _doing("long", 1),
    0x8B: _doing("long", 4),
    0x8C: _doing("text", 1),
    0x8D: _doing("text", 8),
    0x8E: _pushing(lambda m: m.take(m.number(8))),
    0x8F: _pushing(lambda _: Thing(_SET)),
    0x90: lambda m: m.append(m.pop_mark()),
    0x91: _doing("set_of_mark"),
    0x92: _doing("new_with_keywords"),
    0x93: _doing("stack_global"),
    0x94: lambda m: m.remember(len(m.memo)),
    0x95: _doing("frame"),
    0x96: _pushing(lambda m: m.take(m.number(8))),
    0x97: _doing("refuse", "an out-of-band buffer"),
    0x98: _doing("refuse", "an out-of-band buffer"),
}
