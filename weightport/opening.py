"""Opening what a transfer reads: one model file, or everything that a mapping names.

Promise: headers only; what was opened here is closed here, what was given open stays open. A file is a local path or a
URL of fsspec's. Limit: what is opened again in another process needs the same path, or URL, there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from weightport.budget import ISOLATED
from weightport.errors import Error
from weightport.formats import _fs
from weightport.integrity import checksum_of
from weightport.tensors import Array, Budget, Extent, Index, Source, TensorSpec, extent_of

if TYPE_CHECKING:
    from weightport.layouts.stacks import Cell
    from weightport.mapping import Mapping as Rules
    from weightport.scopes import Scope

    Named = Mapping[str, str | os.PathLike[str] | Source] | None


class OpenSource:
    """An open model file, as :func:`open` returns it: a :class:`weightport.tensors.Source` with a scope tree.

    Attributes:
        format: its format's name.
        path: as it was given, without ``FORMAT:``.
        aliases: the file's own names of tensors that are listed under others -> the names they are listed under.
        root: the scope of the model's own before its tensors' names, which a mapping may leave out; mostly empty.
    """

    def __init__(self, inner: Source, *, untrusted: bool = False) -> None:
        self._inner, self._untrusted = inner, untrusted
        self.format, self.path = inner.format, inner.path
        self.aliases: Mapping[str, str] = getattr(inner, "aliases", {})
        self.root: str = getattr(inner, "root", "")

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec (dtype, shape, nbytes, role), in the file's order. No tensor bytes are read."""
        return self._inner.specs()

    def provenance(self) -> dict[str, str]:
        """What weightport said of the file when it wrote it: ``version``, ``source``, ``mapping_sha256``,
        ``layouts_sha256``, and ``source_sha256`` where that was known. Empty for any other file.
        """
        from weightport.provenance import provenance_of

        return provenance_of(self._inner)

    def read(self, name: str, index: Index = None, *, dequantize: bool = False) -> Array:
        """A tensor, or the part of it that ``index`` (slices of the leading axes) cuts out, as a numpy array.

        Args:
            dequantize: of a quantized tensor, the floats that its stored numbers stand for.

        Raises:
            TensorNotFound: no such name; the message lists the closest.
            FormatError: truncated or corrupt; checksums are verified where the format has them.
        """
        how = spec.quantized if dequantize and (spec := self.specs().get(name)) is not None else None
        if how is None:
            return self._inner.read(name, index)
        from weightport.ranges import ranges_of, slices_of

        how.check()
        ranges = ranges_of(index, how.shape)
        return how.decode(self._inner.read(name, slices_of(how.stored(ranges))), ranges)

    def extent(self, name: str) -> Extent | None:
        """Where a tensor lies in a file as it lies in memory; None if it does not, or nobody knows."""
        return extent_of(self._inner, name)

    def checksum(self, name: str) -> str:
        """What the file has over a tensor's values, and every read of it compares: ``crc32c``, ``crc32``, ``sha1``,
        ``fletcher32``, or nothing."""
        return checksum_of(self._inner, name)

    def __reduce__(self) -> tuple[Any, ...]:
        # In another process it is the same file, opened again.
        end = "/" if self.path.endswith("/") else ""  # which can tell a folder from a prefix
        path = f"{self.format}:{_fs.abspath(self.path)}{end}"
        return _again, (path, self._untrusted, self.path, _fs.typed(self.path))

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What the file records about the RNN cell of these tensors (:meth:`weightport.tensors.Source.facts`)."""
        return self._inner.facts(names)

    def tree(self) -> Scope:
        """The scope tree; ``print`` draws it."""
        from weightport.scopes import tree

        return tree({n: s for n, s in self.specs().items() if s.role != "constant"})

    def cells(self) -> list[Cell]:
        """The RNN cells that are found in it by their tensors' names, or by what a graph does with them."""
        from weightport.scopes import find_cells

        return find_cells(self.specs(), facts=self.facts)

    def close(self) -> None:
        """Release the file handles; reading afterwards is an error."""
        self._inner.close()

    def __enter__(self) -> OpenSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open(  # noqa: A001
    path: str | os.PathLike[str], *, budget: Budget | None = None, untrusted: bool = False
) -> OpenSource:
    """Open a model file for reading: its header only.

    Args:
        path: a checkpoint prefix, its ``.index``, a folder that holds a checkpoint or a SavedModel, ``.pb``,
            ``.pbtxt``, ``.meta``, ``.h5``, ``.keras``, ``.npz``, ``.npy``, ``.safetensors``, ``.pt``, ``.bin``,
            ``.onnx``, ``.tflite``, ``.gguf``, ``.msgpack`` or the folder of a checkpoint of Orbax. The format is
            told by the content; ``FORMAT:PATH`` forces one. Each may be a URL of fsspec's (``s3://``, ``https://``,
            ``zip://inside::https://...``); what is fetched are the byte ranges that are read.
        budget: bounds on what the reader takes in, whatever the file claims.
        untrusted: what only a library can read that is not weightport's (HDF5 files; Orbax' arrays) is read by it in a
            process of its own, which may crash, hang or run out of memory: that is a FormatError, and nothing else is
            lost. Opening such a file takes a third of a second longer.

    Raises:
        FormatError: missing, truncated, corrupt, or no model file that weightport reads.
        MissingPackage: a URL whose file system is not installed.
    """
    from weightport.formats.detect import open_source

    budget = budget or Budget()
    if untrusted:
        budget = replace(budget, isolated=True)
    return OpenSource(open_source(path, budget=budget), untrusted=budget.isolated)


def _again(path: str, untrusted: bool, place: str, typed: str) -> OpenSource:
    """In another process: a URL that was typed in the first one is known by the same path."""
    _fs.place_as(place, typed)
    return open(path, untrusted=untrusted)


@contextmanager
def distrust() -> Iterator[None]:
    """All that is opened by its path in here is not trusted; see :func:`open`."""
    token = ISOLATED.set(True)
    try:
        yield
    finally:
        ISOLATED.reset(token)


@contextmanager
def as_source(source: Any) -> Iterator[Source]:
    """A source that is open already stays open; a path is opened and closed again."""
    if isinstance(source, str | os.PathLike):
        inner = open(source)
        try:
            yield inner
        finally:
            inner.close()
    else:
        yield _given(source)


def _given(source: Any) -> Source:
    """What was given open, or a live model that shows its values."""
    if isinstance(source, Source):
        return source
    from weightport.targets.registry import is_live, live_source

    if is_live(source):
        return live_source(source)
    what = "a source is a path, what weightport.open returns, or a live model"
    raise Error(f"{what}, not {type(source).__name__}")


def gather(source: Any, rules: Rules, sources: Named = None) -> tuple[Source, list[Source]]:
    """What the mapping reads, as one source; and what was opened for that, which has to be closed."""
    from weightport.inputs import gathered, named_paths

    own: list[Source] = []

    def opened(given: Any) -> Source:
        if isinstance(given, str | os.PathLike):
            own.append(open(given))
            return own[-1]
        return _given(given)

    try:
        main = opened(source)
        return gathered(main, rules, {n: opened(s) for n, s in named_paths(rules, sources or {}).items()}), own
    except BaseException:
        close(own)
        raise


def close(sources: Sequence[Source]) -> None:
    """Close them all."""
    for source in sources:
        source.close()


@contextmanager
def reading(source: Any, rules: Rules, sources: Named) -> Iterator[Source]:
    """What the mapping reads, as one source; paths are opened and closed again."""
    found, own = gather(source, rules, sources)
    try:
        yield found
    finally:
        close(own)
