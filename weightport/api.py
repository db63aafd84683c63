"""The Python interface: open, plan, transfer.

Promise: opening and planning read headers only; a transfer is checked whole before the first byte is written or the
first variable assigned. Limit: a source is a local file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from weightport.errors import Error, MappingError
from weightport.tensors import Array, Budget, Index, Source, TensorSpec, bytes_of

if TYPE_CHECKING:
    from weightport.execute import Progress
    from weightport.layouts.stacks import Cell
    from weightport.mapping import Mapping as Rules
    from weightport.plan import Plan
    from weightport.proof import Verification
    from weightport.scopes import Scope

    AnyMapping = str | os.PathLike[str] | Mapping[str, Any] | Rules
    Named = Mapping[str, str | os.PathLike[str] | Source] | None


class OpenSource:
    """An open model file, as :func:`open` returns it: a :class:`weightport.tensors.Source` with a scope tree.

    Attributes:
        format: its format's name.
        path: as it was given, without ``FORMAT:``.
    """

    def __init__(self, inner: Source) -> None:
        self._inner = inner
        self.format, self.path = inner.format, inner.path

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec (dtype, shape, nbytes, role), in the file's order. No tensor bytes are read."""
        return self._inner.specs()

    def read(self, name: str, index: Index = None) -> Array:
        """A tensor, or the part of it that ``index`` (slices of the leading axes) cuts out, as a numpy array.

        Raises:
            TensorNotFound: no such name; the message lists the closest.
            FormatError: truncated or corrupt; checksums are verified where the format has them.
        """
        return self._inner.read(name, index)

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What the file records about the RNN cell of these tensors (:meth:`weightport.tensors.Source.facts`)."""
        return self._inner.facts(names)

    def tree(self) -> Scope:
        """The scope tree; ``print`` draws it."""
        from weightport.scopes import tree

        return tree({n: s for n, s in self.specs().items() if s.role != "constant"})

    def cells(self) -> list[Cell]:
        """The RNN cells that are found in it by their tensors' names."""
        from weightport.scopes import find_cells

        return find_cells(self.specs())

    def close(self) -> None:
        """Release the file handles; reading afterwards is an error."""
        self._inner.close()

    def __enter__(self) -> OpenSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Result:
    """What a transfer did.

    Attributes:
        plan: what was carried out.
        target: the live model that got the values, or None for a file.
        path: the file that was written, or None for a live model.
        frozen: which of a JAX model's values are constants: for a tree, a tree of bools of the same structure (True
            also at leaves that are no arrays); for an nnx module, an nnx filter. None for all else, where the model
            itself says it.
    """

    plan: Plan
    target: Any = None
    path: str | None = None
    frozen: Any = None

    def as_json(self) -> dict[str, Any]:
        """The document that ``transfer --json`` prints."""
        return self.plan.as_json()

    def __str__(self) -> str:
        return str(self.plan)


def open(path: str | os.PathLike[str], *, budget: Budget | None = None) -> OpenSource:  # noqa: A001
    """Open a model file for reading: its header only.

    Args:
        path: a checkpoint prefix, its ``.index``, a folder that holds a checkpoint or a SavedModel, ``.pb``,
            ``.pbtxt``, ``.meta``, ``.h5``, ``.npz``, ``.npy`` or ``.safetensors``. The format is told by the content;
            ``FORMAT:PATH`` forces one.
        budget: bounds on what the reader takes in, whatever the file claims.

    Raises:
        FormatError: missing, truncated, corrupt, or no model file that weightport reads.
    """
    from weightport.formats.detect import open_source

    return OpenSource(open_source(path, budget=budget))


def load_mapping(mapping: AnyMapping) -> Rules:
    """A mapping from a YAML file or a dict, validated.

    Raises:
        MappingError: every mistake in it, each with its line.
    """
    from weightport.mapping import load_mapping as load

    return load(mapping)


def _rules_for(mapping: AnyMapping, source: Any, target: Any, sources: Named) -> Rules:
    """The mapping; what is wrong with it is said together with what its valid rules get wrong about the models."""
    try:
        return load_mapping(mapping)
    except MappingError as error:
        if error.partial is None or not error.partial.rules:
            raise
        try:
            found = plan(source, target, error.partial, sources=sources).problems
        except Error:
            raise error from None
        raise MappingError(error.joined(found)) from None


@contextmanager
def _opened(source: Any) -> Iterator[Source]:
    """A source that is open already stays open; a path is opened and closed again."""
    if isinstance(source, str | os.PathLike):
        inner = open(source)
        try:
            yield inner
        finally:
            inner.close()
    elif isinstance(source, Source):
        yield source
    else:
        raise Error(f"a source is a path or what weightport.open returns, not {type(source).__name__}")


def gather(source: Any, rules: Rules, sources: Named = None) -> tuple[Source, list[Source]]:
    """What the mapping reads, as one source; and what was opened for that, which has to be closed."""
    from weightport.inputs import gathered, named_paths

    own: list[Source] = []

    def opened(given: Any) -> Source:
        if isinstance(given, str | os.PathLike):
            own.append(open(given))
            return own[-1]
        if not isinstance(given, Source):
            raise Error(f"a source is a path or what weightport.open returns, not {type(given).__name__}")
        return given

    try:
        main = opened(source)
        return gathered(main, rules, {n: opened(s) for n, s in named_paths(rules, sources or {}).items()}), own
    except BaseException:
        _close(own)
        raise


def _close(sources: Sequence[Source]) -> None:
    for source in sources:
        source.close()


@contextmanager
def _reading(source: Any, rules: Rules, sources: Named) -> Iterator[Source]:
    found, own = gather(source, rules, sources)
    try:
        yield found
    finally:
        _close(own)


def plan(source: Any, target: Any, mapping: AnyMapping, *, sources: Named = None) -> Plan:
    """What a mapping does to a source and a target. Pure: headers only, nothing is written; ``str(plan)`` is the dry
    run.

    Args:
        source: a path or an open source.
        target: a path, an open source, a live model (see :func:`transfer`), or None: exactly what the mapping produces.
        mapping: a path, a dict or a loaded mapping.
        sources: name -> path or open source, of the further sources that the mapping names.

    Returns:
        The plan, with its problems in ``plan.problems``; ``plan.check()`` raises them.

    Raises:
        MappingError: the mapping itself is wrong.
        FormatError: a file is missing or corrupt.
    """
    from weightport.plan import plan as make

    rules = load_mapping(mapping)
    with _reading(source, rules, sources) as opened:
        if target is None:
            return make(opened, None, rules)
        if isinstance(target, str | os.PathLike):
            with _opened(target) as file:
                return make(opened, file, rules, target_name=file.path)
        if isinstance(target, Source) and hasattr(target, "read"):
            return make(opened, target, rules, target_name=target.path)
        from weightport.targets.registry import live_target

        live = live_target(target)
        return make(opened, live, rules, target_name=f"the {live.kind} model")


def transfer(
    source: Any,
    target: Any,
    mapping: AnyMapping,
    *,
    out: str | os.PathLike[str] | None = None,
    format: str | None = None,
    sources: Named = None,
    shard_size: str | int | None = None,
    expect_sha256: str | None = None,
    progress: Progress | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    dry_run: bool = False,
    **options: Any,
) -> Result:
    """Move weights into a live model, or into a file.

    Args:
        source: a path or an open source. One that is given open has to stay open as long as a TensorFlow graph may run
            its initializers.
        target: a live model - a ``tf.Graph`` (``tf.compat.v1``), a Keras 3 or legacy Keras model or layer, a
            ``tf.Module``, a list of ``tf.Variable``, an nnx module, a JAX tree of arrays (the new one is the result's
            ``target``) - or, with ``out``, a file that describes the new model, or None.
        mapping: a path, a dict or a loaded mapping.
        out: the file to write: ``.npz``, ``.safetensors``, ``.h5``, a checkpoint prefix ``tf-checkpoint:PREFIX`` or one
            that ends in ``.ckpt``. It holds the target's tensors, kept values included; without a target, what the
            mapping produces.
        format: the format of ``out``, where its suffix does not say.
        sources: name -> path or open source, of the further sources that the mapping names.
        shard_size: for formats of several files: bytes of values in one of them, a number or ``"2GB"``. A larger tensor
            has a file of its own.
        expect_sha256: refuse any other source (:func:`weightport.formats.files.digest`).
        progress: called with the number of bytes as they are written.
        on_plan: called with the plan before anything is written or assigned, also with one that has problems.
        dry_run: check everything, ``out`` too if it is given, and write or assign nothing.
        options: for a graph: ``session`` (one that has run it already) and ``large_constants`` (``"refuse"`` or
            ``"variable"``: what becomes of constants beyond protobuf's 2 GiB).

    Returns:
        The plan that was carried out, and the live model (or the file's path).

    Raises:
        MappingError: the mapping is wrong.
        PlanError: it does not fit the source or the target; all problems at once. Nothing was written or assigned.
        FormatError: the source is truncated, corrupt, or not the file that was expected.
        RefusedError: it could do harm (a destination that is the source); the message says what to do instead.
    """
    from weightport import __version__
    from weightport.plan import plan as make

    rules = _rules_for(mapping, source, target, sources)
    told = on_plan or (lambda _: None)
    file = target is None or isinstance(target, str | os.PathLike | OpenSource)
    if out is None and file and not dry_run:
        raise Error("to write a file, say where: out='model.npz'")
    if shard_size is not None and out is None:
        raise Error("shard_size is for a file that is written: say where, out='model.ckpt'")
    if out is None and not file:
        return _into_model(source, target, rules, sources, expect_sha256, told, dry_run, options)
    if options:
        raise Error(f"{', '.join(options)}: for live models only")
    if not file:
        raise Error(f"with out=, the target is a file, not {type(target).__name__}")
    from weightport.execute import Unchanged, write_file
    from weightport.formats.detect import writer_for
    from weightport.inputs import expected, files, provenance, refuse_inputs

    with ExitStack() as stack:
        opened = stack.enter_context(_reading(source, rules, sources))
        kept = stack.enter_context(_opened(target)) if target is not None else None
        watch = Unchanged(file for side in (opened, kept) if side is not None for file in files(side))
        expected(opened, expect_sha256, rules)
        planned = make(opened, kept, rules, target_name=kept.path if kept is not None else "")
        told(planned)
        planned.check()
        if out is None:
            return Result(planned)
        like = os.fspath(target) if isinstance(target, str | os.PathLike) else kept.path if kept is not None else None
        shards = None if shard_size is None else bytes_of(shard_size)
        path, write = writer_for(os.fspath(out), format=format, like=like, shard_size=shards)
        refuse_inputs(path, opened, kept, rules)
        if not dry_run:
            metadata = provenance(opened, rules, __version__)
            write_file(planned, opened, kept, path, write, metadata=metadata, progress=progress, watch=watch)
        return Result(planned, path=None if dry_run else path)


def verify(source: Any, out: Any, mapping: AnyMapping, *, live: bool = False, sources: Named = None) -> Verification:
    """Whether a written model holds what the mapping makes of the source, and each moved cell is the same function.

    Args:
        source: a path or an open source: what the weights came from.
        out: a path or an open source: what was written; or the JAX tree or nnx module that got the values.
        mapping: a path, a dict or a loaded mapping.
        live: run the frameworks' own cells, too, where they are installed.
        sources: name -> path or open source, of the further sources that the mapping names.

    Returns:
        The largest difference of every tensor and every cell; ``equal`` says whether all of them agree.

    Raises:
        MappingError: the mapping is wrong.
        PlanError: it does not fit the two files.
        FormatError: a file is truncated or corrupt, or the source is not the one that the mapping is for.
    """
    from weightport.inputs import expected
    from weightport.proof import verify as prove

    rules = load_mapping(mapping)
    if not isinstance(out, str | os.PathLike | Source):
        from weightport.targets.registry import live_source

        out = live_source(out)
    with _reading(source, rules, sources) as opened, _opened(out) as written:
        expected(opened, None, rules)
        return prove(opened, written, rules, live=live)


def _into_model(
    source: Any,
    target: Any,
    rules: Rules,
    sources: Named,
    expect_sha256: str | None,
    told: Callable[[Plan], None],
    dry_run: bool,
    options: Mapping[str, Any],
) -> Result:
    from weightport.execute import Unchanged, live_values
    from weightport.inputs import expected, files
    from weightport.plan import plan as make
    from weightport.targets.registry import is_graph, live_target

    live = live_target(target, **options)
    # A graph reads when its initializers run: the source is closed with the graph that holds them.
    stays = is_graph(target) and not dry_run
    opened, own = gather(source, rules, sources)
    try:
        watch = Unchanged(files(opened), replaced=stays)
        expected(opened, expect_sha256, rules)
        planned = make(opened, live, rules, target_name=f"the {live.kind} model")
        told(planned)
        planned.check()
        if dry_run:
            return Result(planned, target)
        assigned = live.assign(live_values(planned, opened, watch))
        return Result(planned, assigned, frozen=getattr(live, "frozen", None))
    except BaseException:
        stays = False
        raise
    finally:
        if not stays:
            _close(own)
