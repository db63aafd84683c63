"""Named tensors: what a model file or a live model looks like to the rest of weightport.

Promise: everything above the formats and the targets sees only these protocols, and a spec never holds tensor bytes.
Limit: no I/O happens here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from weightport.budget import Budget as Budget
from weightport.budget import checked_nbytes as checked_nbytes
from weightport.errors import Error, PlanError, Problem

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
#: One slice per leading axis (steps are positive, axes are kept); ``None`` is the whole tensor.
Index: TypeAlias = tuple[slice, ...] | None
#: A part of a tensor: one range per axis, every step positive.
Ranges: TypeAlias = tuple[range, ...]

#: What a stored tensor is. ``weight``: a variable; ``slot``: an optimizer's per-variable state; ``optimizer``: the
#: optimizer's own state; ``counter``: a step or save counter; ``constant``: a constant of a graph that is no variable.
ROLES = ("weight", "slot", "optimizer", "counter", "constant")


class Quantized(Protocol):
    """How stored numbers stand for others. Equal ones compare equal."""

    @property
    def title(self) -> str:
        """The kind, for people: ``Q4_0``, ``scale 0.1, zero point 3``."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values that are meant."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values that are meant; that of what is stored may differ in the last axis."""
        ...

    def stored(self, ranges: Ranges) -> Ranges:
        """The part of what is stored that a part of the values, one range for each axis, is computed from."""
        ...

    def decode(self, stored: Array, ranges: Ranges) -> Array:
        """That part of the values, from what :meth:`stored` says."""
        ...

    def check(self) -> None:
        """Whether it can be decoded here.

        Raises:
            Error: it cannot; the message says what is missing.
        """
        ...


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's header.

    Attributes:
        dtype: numpy's or ml_dtypes' dtype; strings are ``object`` (arrays of ``bytes``).
        shape: the full shape, also where the file stores slices.
        nbytes: bytes of the values in memory order (for strings: the bytes stored in the file).
        role: one of :data:`ROLES`.
        unread: why its values cannot be read (``quantized ...``, ``sparse ...``); empty for a tensor that can be. The
            dtype is then that of what is stored, or ``object``.
        quantized: how the stored numbers, of this dtype and shape, stand for others; None where they are the values.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    nbytes: int
    role: str = "weight"
    unread: str = ""
    quantized: Quantized | None = None

    @classmethod
    def of(cls, dtype: str | np.dtype[Any], shape: Sequence[int], role: str = "weight") -> TensorSpec:
        """The spec of a fixed-size dtype: ``nbytes`` follows from the shape (Python ints, no overflow)."""
        resolved = np.dtype(dtype) if not isinstance(dtype, str) else dtype_named(dtype)
        size = resolved.itemsize
        for dim in shape:
            size *= int(dim)
        return cls(resolved, tuple(int(d) for d in shape), size, role)

    @property
    def dtype_name(self) -> str:
        """The dtype by numpy's or ml_dtypes' name, as the JSON documents print it."""
        return _name_of(self.dtype)


@lru_cache(maxsize=256)
def _name_of(dtype: np.dtype[Any]) -> str:
    """numpy puts a dtype's name together each time that it is asked for."""
    name: str = dtype.name
    return name


@runtime_checkable
class Source(Protocol):
    """An open model file. Opening reads headers only; :meth:`read` reads only the byte ranges asked for.

    A source that lists tensors under other names than the file's has an attribute ``aliases``: the file's own name ->
    the listed one. Both can be read, and a mapping may say either.
    """

    format: str
    path: str

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec, in the file's own order."""
        ...

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor, or the part of it that ``index`` cuts out, as a new array (C order, native byte order).

        Raises:
            TensorNotFound: no such name.
            FormatError: truncated or corrupt; checksums are verified where the format has them.
        """
        ...

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What the file itself records about the RNN cell that owns these tensors (one layer, one direction).

        Keys, each only where it is really recorded: ``forget_bias``, ``activation``, ``recurrent_activation``,
        ``reset_after``, ``cell_clip``, ``proj_clip``, ``go_backwards``; ``window``: how a convolution lies on its
        image, empty where that is padded to the same size and there are no strides; ``gates``: the list of an LSTM's
        gates in the order in which one product gives them, or ``[h]``: it is such a cell, whatever its tensors are
        called; ``cudnn``: kind and directions of a cell that is cuDNN's one vector; and ``variant``: what makes the
        cell another function than its layout's, as what follows "the cell" ("has coupled input and forget gates").
        """
        ...

    def close(self) -> None:
        """Release the file handles. Reading afterwards is an error."""
        ...


@dataclass(frozen=True, slots=True)
class Checksum:
    """A checksum that a file stores.

    Attributes:
        kind: ``crc32`` or ``crc32c``.
        value: the plain checksum, not masked.
        offset: the first byte of the file that it is over.
        size: how many bytes it is over.
    """

    kind: str
    value: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a tensor lies in a file as it lies in memory: dense, in C order and native byte order.

    Attributes:
        path: a file that can be opened at any time.
        offset: of the first element.
        nbytes: of all elements; they are there.
        checksum: over these bytes, or over these and others; None where the format has none.
    """

    path: str
    offset: int
    nbytes: int
    checksum: Checksum | None = None


@runtime_checkable
class Located(Protocol):
    """A :class:`Source` that says where tensors lie, so that others can read them by position, and verify them."""

    def extent(self, name: str) -> Extent | None:
        """Where the tensor lies; None if it does not lie anywhere as it is. No tensor bytes are read.

        Raises:
            TensorNotFound: no such name.
            FormatError: its file is missing or too short.
        """
        ...


def extent_of(source: Source, name: str) -> Extent | None:
    """Where a tensor of any source lies; None if it does not lie anywhere as it is, or nobody knows."""
    # Not isinstance(source, Located): that looks at the protocol anew each time, and there may be a million tensors.
    extent: Callable[[str], Extent | None] | None = getattr(source, "extent", None)
    return None if extent is None else extent(name)


#: Yields consecutive C-order tiles of a tensor, cut along axis 0 (a scalar or an empty tensor is one tile).
Tiles: TypeAlias = Callable[[str], Iterator[Array]]


class FileWriter(Protocol):
    """Writes one complete model file, atomically: the destination is the old file or the complete new one."""

    def __call__(
        self,
        path: str,
        specs: Mapping[str, TensorSpec],
        tiles: Tiles,
        *,
        metadata: Mapping[str, str] | None = None,
        constants: Collection[str] = (),
        kept: Collection[str] = (),
    ) -> None:
        """Write the tensors of ``specs`` in its order, with the values that ``tiles`` yields.

        Args:
            path: the destination.
            specs: name -> dtype and shape.
            tiles: yields the values of a tensor, each time it is called.
            metadata: provenance, for formats that have room for it.
            constants: those of ``specs`` that are to be frozen (``as: constant``), for formats that tell them apart.
            kept: those of ``specs`` that keep the value of the TARGET file: whoever edits that file may leave them.
        """
        ...


class Destination(Protocol):
    """A model in the making, whose tensors' places are known before their values.

    Attributes:
        places: the file, and where in it each tensor's values begin (dense, C order, native byte order), of the tensors
            that are to be written. The files are there, and are not the final ones.
        checksum: the kind of checksum that the format has for each tensor, or None.
    """

    places: Mapping[str, tuple[str, int]]
    checksum: str | None

    def done(self, name: str, checksum: int) -> None:
        """Take the plain checksum of a tensor's bytes; only where the format has one."""
        ...


@dataclass(slots=True)
class Kept:
    """What a writer calls its temporaries, so that a later one can go on with them, and whether it leaves them behind.

    Attributes:
        token: the part of their names that is random else.
        keep: whether they are worth it, should the writer fail.
    """

    token: str
    keep: bool = False


@runtime_checkable
class RangedWriter(FileWriter, Protocol):
    """A writer of a format in which tensors can be written at any place, in any order."""

    def destination(
        self,
        path: str,
        specs: Mapping[str, TensorSpec],
        tiles: Tiles,
        *,
        metadata: Mapping[str, str] | None = None,
        kept: Kept | None = None,
    ) -> AbstractContextManager[Destination] | None:
        """Files to write to. The model is complete, and appears at ``path``, when the context ends without an error.

        What has no place of a known size (strings) is written at once, from ``tiles``. None: this one is a stream.
        With ``kept``, the files are those that an earlier writer of it left, if they are there: all that is in the
        places of tensors is still in them.
        """
        ...


# numpy takes whole expressions for a dtype ("2f4, i1"), and has Python parse what stands in them; "a4" it warns of.
_DTYPE = re.compile(r"[<>|=]?(?!a\d*\Z)[A-Za-z?]\w{0,30}")
# Names that ml_dtypes has, or may have by now: float8_e8m0fnu and the small integers came with 0.5.
_EXTENSION = re.compile(r"float[468]_e\d\w*|u?int[124]")


class DtypeError(Error, TypeError):
    """A dtype that the installed ml_dtypes is too old for."""


def dtype_named(name: str) -> np.dtype[Any]:
    """The dtype of that name, numpy's or ml_dtypes' (``bfloat16``, ``float8_e4m3fn``, ...).

    Raises:
        TypeError: no such dtype.
        DtypeError: a dtype that only a newer ml_dtypes has (a TypeError too).
    """
    if not _DTYPE.fullmatch(name):
        raise TypeError(f"no dtype {name[:40]!r}")
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes  # registers its dtypes with numpy; imported only where one is really met

        found = getattr(ml_dtypes, name, None)
        if found is not None:
            dtype: np.dtype[Any] = np.dtype(found)
            return dtype
        if _EXTENSION.fullmatch(name):
            what = f"the installed ml_dtypes {ml_dtypes.__version__} has no dtype {name}"
            raise DtypeError(Problem("", what, "pip install --upgrade ml_dtypes")) from None
        raise


@dataclass(frozen=True, slots=True)
class Value:
    """What one tensor of a target is to become.

    Attributes:
        name: the target's own name.
        spec: dtype and shape that ``produce`` delivers (equal to the target's, checked by the plan).
        constant: frozen (``as: constant``) instead of an initial value.
        produce: reads and computes the value, or the part of it that an index cuts out. It may be called any number of
            times and gives the same bytes each time; nothing is kept in between.
        put: puts the same into an array of that dtype and shape, without a second array of that size on the way; None:
            what ``produce`` gives is copied.
    """

    name: str
    spec: TensorSpec
    constant: bool
    produce: Callable[[Index], Array]
    put: Callable[[Array, Index], None] | None = None

    def fill(self, out: Array, index: Index = None) -> None:
        """Put the value, or the part that ``index`` cuts out, into an array of that dtype and shape (C order).

        Raises:
            PlanError: ``produce`` delivered another shape or dtype than it said.
        """
        if self.put is not None:
            self.put(out, index)
            return
        made = self.produce(index)
        if made.dtype != out.dtype or made.shape != out.shape:
            have, want = (f"{a.dtype.name} {list(a.shape)}" for a in (made, out))
            raise PlanError(Problem(f"variable {self.name!r}", f"{want} was planned, {have} was produced"))
        np.copyto(out, made)


class Target(Protocol):
    """A live model: named variables that take values."""

    kind: str

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec of every variable that a mapping has to account for, in the model's own order."""
        ...

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What the live model records about the RNN cell that owns these variables; keys as in :meth:`Source.facts`."""
        ...

    def assign(self, values: Sequence[Value]) -> Any:
        """Give the variables their values, all or nothing, and freeze the constants. Returns the model to use on."""
        ...
