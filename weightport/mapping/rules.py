"""What a mapping file becomes: typed, frozen rules, each of which knows its place in the file.

Promise: a :class:`Mapping` that was loaded is valid in itself; whether it fits a source and a target is the plan's
question. Limit: pure data; nothing here reads a file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from weightport.layouts.table import Layout
from weightport.mapping.patterns import Glob, Pattern

#: The operations of a tensor rule, in the order in which they are applied, however the file orders them.
OPERATIONS = ("dequantize", "concat", "slice", "reshape", "rearrange", "vocab", "pad", "scale", "cast", "split")

Slices: TypeAlias = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Side:
    """``source:`` or ``target:``: a scope that stands before every name of that side (``""`` is the root).

    Attributes:
        scope: without a slash at either end.
        sha256: the one file that the mapping is for (64 lower-case hexadecimal digits), or None; source only.
        average: the name, below a variable's own, of the moving average that is read in its place; ``""`` if the
            variables themselves are; source only.
    """

    scope: str = ""
    sha256: str | None = None
    average: str = ""


@dataclass(frozen=True, slots=True)
class NamedSource:
    """One of ``sources:``: a further model, whose tensors stand below the scope ``name``.

    Attributes:
        where: what messages about it begin with.
        path: where it is unless the caller says otherwise (as the mapping file's own path is given: absolute, or from
            the current folder), or None: the caller has to say.
        sha256, average: as of :class:`Side`.
    """

    name: str
    where: str
    path: str | None = None
    sha256: str | None = None
    average: str = ""


@dataclass(frozen=True, slots=True)
class Initializer:
    """A name and arguments that :func:`weightport.initializers.check_arguments` has nothing to say against."""

    name: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rearrange:
    """``in (h d) -> h d in`` as groups of axes: each side has the same axes, once each.

    Attributes:
        left, right: one group per dimension, outermost axis first; ``()`` is a dimension of size 1.
        sizes: sizes that the file states; every left group has at most one axis without a size.
    """

    text: str
    left: tuple[tuple[str, ...], ...]
    right: tuple[tuple[str, ...], ...]
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Columns:
    """What the tab-separated columns of a vocabulary file are, counted from 0.

    Attributes:
        word: the words.
        row: their rows, or None: the first line has row 0.
        header: whether the first line names the columns; None: it does not, unless it looks as if, which is an error.
    """

    word: int = 0
    row: int | None = None
    header: bool | None = None


@dataclass(frozen=True, slots=True)
class Vocab:
    """Rows moved by word: row ``to[word]`` of the result is row ``from[word]`` of the source.

    Attributes:
        source, target: files of words (absolute paths), read by :func:`weightport.mapping.vocab.read_vocab`.
        axis: the axis that runs over words.
        missing: what a word that only the target has gets: an initializer, ``"mean"`` (of all source rows), or None,
            which makes such a word an error.
        source_text, target_text: the files as the mapping spells them.
        source_columns, target_columns: of files with columns, where the mapping says what they are.
    """

    source: str
    target: str
    axis: int = 0
    missing: Initializer | str | None = None
    source_text: str = ""
    target_text: str = ""
    source_columns: Columns | None = None
    target_columns: Columns | None = None


@dataclass(frozen=True, slots=True)
class Pad:
    """``widths``: (before, after) for each axis; ``value`` fills them."""

    widths: tuple[tuple[int, int], ...]
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Split:
    """One source into several targets along ``axis``: parts of these sizes, or equal ones if None."""

    axis: int
    sizes: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Ops:
    """The operations of a tensor rule; None is one that the rule does not have. Applied in :data:`OPERATIONS`' order.

    Attributes:
        dequantize: whether quantized tensors become the floats that they stand for (others stay what they are), or are
            moved as they are stored; None refuses them.
        concat: the axis along which several sources are joined.
        slice: one slice per axis from the first on, with a positive step or None; every axis is kept.
        reshape: the new shape; at most one -1.
        scale: what the values are multiplied with.
        cast: numpy's or ml_dtypes' name of the dtype.
    """

    dequantize: bool | None = None
    concat: int | None = None
    slice: Slices | None = None
    reshape: tuple[int, ...] | None = None
    rearrange: Rearrange | None = None
    vocab: Vocab | None = None
    pad: Pad | None = None
    scale: float | None = None
    cast: str | None = None
    split: Split | None = None

    def given(self) -> tuple[str, ...]:
        """The names of the operations that the rule has, in order of application."""
        found = ((name, getattr(self, name)) for name in OPERATIONS)
        return tuple(name for name, value in found if value is not None and value is not False)


@dataclass(frozen=True, slots=True)
class CellRef:
    """A whole RNN cell on one side of a rule. What is None is as the layout, or the model file, says.

    Attributes:
        where: what messages about it begin with.
        layout: the name of a layout that exists.
        scope: literal text, under the side's scope; ``""`` is the root.
        gates: another order, or gate -> name.
        reset: ``before`` or ``after``.
        layers: 0-based.
        directions: of ``forward`` and ``backward``.
        sizes: ``input``, ``units``, ``layers`` and ``directions`` (their numbers), which the cell has to have.
    """

    where: str
    layout: str
    scope: str
    forget_bias: float | None = None
    gates: tuple[str, ...] | dict[str, str] | None = None
    activation: str | None = None
    recurrent_activation: str | None = None
    reset: str | None = None
    layers: tuple[int, ...] | None = None
    directions: tuple[str, ...] | None = None
    sizes: dict[str, int] | None = None


@dataclass(frozen=True, slots=True)
class _Common:
    """What every rule has.

    Attributes:
        index: its place under ``rules:``, 0-based.
        where: what messages about it begin with: ``asr.yaml:12 rules[3]``, or ``rules[3]`` for a dict.
        constant: ``as: constant``; the targets are frozen.
        optional: matching nothing is no error.
    """

    index: int
    where: str
    constant: bool
    optional: bool

    @property
    def name(self) -> str:
        """``rules[3]``."""
        return f"rules[{self.index}]"


@dataclass(frozen=True, slots=True)
class CellRule(_Common):
    """Moves a whole cell from one layout to another.

    Attributes:
        slots: optimizer slots go where their variables go.
        vocab: the first layer's inputs are words; their rows move by word.
    """

    source: CellRef
    target: CellRef
    slots: bool = False
    vocab: Vocab | None = None


@dataclass(frozen=True, slots=True)
class TensorRule(_Common):
    """Moves tensors by name.

    Attributes:
        sources: several are joined by ``ops.concat``. The first pattern binds; the others use only names that it binds.
        targets: several take the parts of ``ops.split``. They use only names that ``sources[0]`` binds.
        backwards: from the targets to the sources, the operations undone in the opposite order.
        slots: optimizer slots go where their variables go.
    """

    sources: tuple[Pattern, ...]
    targets: tuple[Pattern, ...]
    ops: Ops = field(default_factory=Ops)
    backwards: bool = False
    slots: bool = False

    @property
    def froms(self) -> tuple[Pattern, ...]:
        """The patterns of the side that is read."""
        return self.targets if self.backwards else self.sources

    @property
    def tos(self) -> tuple[Pattern, ...]:
        """The patterns of the side that gets values."""
        return self.sources if self.backwards else self.targets


@dataclass(frozen=True, slots=True)
class InitRule(_Common):
    """Initializes targets that the source does not cover: those that match ``targets``, or a whole ``target_cell``.

    Attributes:
        backwards: what was initialized has nothing to go back to: such source tensors are left behind.
    """

    targets: tuple[Pattern, ...]
    target_cell: CellRef | None
    initializer: Initializer
    backwards: bool = False


Rule: TypeAlias = CellRule | TensorRule | InitRule


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping file.

    Attributes:
        path: the file as it was named, or ``""`` if the mapping came as a dict.
        version: of the language.
        sources: models beside the one that is meant by ``source``.
        layouts: the mapping's own layouts, by name.
        ignore: source tensors left behind on purpose.
        keep: target tensors that keep their own value on purpose.
        document: the plain data that all this was made from.
    """

    path: str
    version: int
    description: str
    source: Side
    target: Side
    layouts: dict[str, Layout]
    rules: tuple[Rule, ...]
    ignore: tuple[Glob, ...]
    keep: tuple[Glob, ...]
    document: dict[str, Any]
    sources: tuple[NamedSource, ...] = ()

    def reversed(self) -> Mapping:
        """The mapping backwards: from its target to its source. Backwards twice is the mapping itself.

        What a rule moved goes back to where it came from; what was initialized or kept is left behind; what was ignored
        keeps its value.

        Raises:
            MappingError: the rules that cannot be undone, each with what stands in the way.
        """
        from weightport.mapping.reverse import reverse

        return reverse(self)

    @property
    def digest(self) -> str:
        """SHA-256 of the document as canonical JSON: the same for files that differ in comments and style only."""
        text = json.dumps(self.document, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()
