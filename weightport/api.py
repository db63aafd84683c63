"""The Python interface: open, plan, transfer.

Promise: opening and planning read headers only; a transfer is checked whole before the first byte is written or the
first variable assigned. A file is a local path or a URL.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightport.errors import Error, MappingError
from weightport.opening import OpenSource, as_source, close, gather, reading
from weightport.sizes import bytes_of
from weightport.tensors import Source

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from weightport.execute import Progress
    from weightport.execute.journal import Resumed
    from weightport.integrity import Integrity
    from weightport.mapping import Mapping as Rules
    from weightport.plan import Plan
    from weightport.proof import Verification

    AnyMapping = str | os.PathLike[str] | Mapping[str, Any] | Rules
    from weightport.opening import Named


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
        integrity: what verified the bytes of each source tensor that was moved; of a dry run, and of a graph, which
            reads when its initializers run: what will.
        resumed: how much was done already, of a transfer with ``resume=True``.
    """

    plan: Plan
    target: Any = None
    path: str | None = None
    frozen: Any = None
    integrity: Integrity | None = None
    resumed: Resumed | None = None

    def as_json(self) -> dict[str, Any]:
        """The document that ``transfer --json`` prints."""
        found = {} if self.integrity is None else {"integrity": self.integrity.as_json()}
        return {**self.plan.as_json(), **found, **({} if self.resumed is None else {"resumed": self.resumed.as_json()})}

    def __str__(self) -> str:
        return str(self.plan)


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


def plan(source: Any, target: Any, mapping: AnyMapping, *, sources: Named = None) -> Plan:
    """What a mapping does to a source and a target. Pure: headers only, nothing is written; ``str(plan)`` is the dry
    run.

    Where a cell is exact only for some values (``plan.conditions``), these are not looked at here; :func:`transfer`
    looks, also with ``dry_run=True``.

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
    with reading(source, rules, sources) as opened:
        if target is None:
            return make(opened, None, rules)
        if isinstance(target, str | os.PathLike):
            with as_source(target) as file:
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
    locked: str | os.PathLike[str] | bool = False,
    progress: Progress | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    dry_run: bool = False,
    threads: int | None = None,
    executor: Executor | None = None,
    cluster: str | None = None,
    link: bool = False,
    resume: bool | Callable[[str], None] = False,
    **options: Any,
) -> Result:
    """Move weights into a live model, or into a file.

    Args:
        source: a path or URL, an open source, or a live model that shows its values (of JAX). One that is given open
            has to stay open as long as a TensorFlow graph may run its initializers.
        target: a live model - a ``tf.Graph`` (``tf.compat.v1``), a Keras 3 or legacy Keras model or layer, a
            ``tf.Module``, a list of ``tf.Variable``, a ``torch.nn.Module``, an nnx module, a JAX tree of arrays (the
            new one is the result's ``target``) - or, with ``out``, a file that describes the new model, or None.
        mapping: a path, a dict or a loaded mapping.
        out: the file to write: ``.npz``, ``.safetensors``, ``.pt``, ``.h5``, ``.msgpack``, a checkpoint prefix
            ``tf-checkpoint:PREFIX`` or one that ends in ``.ckpt``; with a ``target`` of that kind also ``.pb``,
            ``.meta`` and the folder of a SavedModel, where constants become constants of the graph. It holds the
            target's tensors, kept values included; without a target, what the mapping produces. By a URL, it is
            written here first and put there when it is complete.
        format: the format of ``out``, where its suffix does not say.
        sources: name -> path or open source, of the further sources that the mapping names.
        shard_size: for formats of several files: bytes of values in one of them, a number or ``"2GB"``. A larger tensor
            has a file of its own.
        expect_sha256: refuse any other source (:func:`weightport.formats.files.digest`).
        locked: refuse anything that is not as the lock file says (:func:`lock`): its path, or True for the one beside
            the mapping file.
        progress: called with the number of bytes as they are written.
        on_plan: called with the plan before anything is written or assigned, also with one that has problems.
        dry_run: check everything, ``out`` too if it is given, and write or assign nothing.
        threads: how many write ``out``; by default as many as there are processors, up to a few. The file is the same.
        executor: any ``concurrent.futures.Executor`` to write ``out`` with instead: threads, processes, or machines
            that see the same files.
        cluster: the address of a scheduler of ``dask.distributed``, the path of its file, or ``local:N``: its workers
            write ``out``; see :func:`weightport.cluster.connected`.
        link: from checkpoint to checkpoint, where nothing but names changes: the new one's data files are the old
            one's, under another name (hard links), and nothing is copied. Refused where it is not so. Where the file
            system has clones, these are made without being asked for.
        resume: should it fail or be killed, leave what is written of ``out``, and go on with what an earlier call with
            ``resume=True`` left, if everything that decides about the result is the same. What is found is read back
            and compared. Only for formats that are written by range. A function is told what becomes of it.
        options: for a graph: ``session`` (one that has run it already) and ``large_constants`` (``"refuse"`` or
            ``"variable"``: what becomes of constants beyond protobuf's 2 GiB).

    Returns:
        The plan that was carried out, and the live model (or the file's path).

    Raises:
        MappingError: the mapping is wrong.
        PlanError: it does not fit the source or the target; all problems at once. Nothing was written or assigned.
        FormatError: the source is truncated, corrupt, or not the file that was expected.
        ConditionError: the source's values do not meet the conditions of the plan; all of these at once. Nothing was
            written or assigned.
        RefusedError: it could do harm (a destination that is the source); the message says what to do instead.
    """
    from weightport import __version__
    from weightport.inputs import expected, files, given_files, paths, refuse_arguments, refuse_inputs
    from weightport.plan import plan as make

    refuse_arguments(options, transfer.__annotations__, threads)
    rules = _rules_for(mapping, source, target, sources)
    told = on_plan or (lambda _: None)
    file = target is None or isinstance(target, str | os.PathLike | OpenSource)
    if out is None and file and not dry_run:
        raise Error("to write a file, say where: out='model.npz'")
    if shard_size is not None and out is None:
        raise Error("shard_size is for a file that is written: say where, out='model.ckpt'")
    if resume and out is None:
        raise Error("resume is for a file that is written: say where, out='model.safetensors'")
    if out is None and not file:
        return _into_model(source, target, rules, sources, expect_sha256, locked, told, dry_run, options)
    if options:
        raise Error(f"{', '.join(options)}: for live models only")
    if not file:
        raise Error(f"with out=, the target is a file, not {type(target).__name__}")
    from weightport import resuming
    from weightport.execute import Unchanged, check_file, write_file
    from weightport.formats._upload import destination
    from weightport.formats.detect import writer_for
    from weightport.integrity import integrity
    from weightport.provenance import record
    from weightport.settle import settled

    with ExitStack() as stack:
        watch = Unchanged(given_files([source, target], rules, sources))  # before any of them is opened
        opened = stack.enter_context(reading(source, rules, sources))
        kept = stack.enter_context(as_source(target)) if target is not None else None
        watch.add(file for side in (opened, kept) if side is not None for file in files(side))
        digests = expected(opened, expect_sha256, rules) | _enforce(locked, opened, kept, rules)
        planned = settled(make(opened, kept, rules, target_name=kept.path if kept is not None else ""), opened)
        told(planned)
        planned.check()
        will = integrity(planned.moved, opened, digests, done=False)
        if out is None:
            return Result(planned, integrity=will)
        like = os.fspath(target) if isinstance(target, str | os.PathLike) else kept.path if kept is not None else None
        shards = None if shard_size is None else bytes_of(shard_size)
        place, url = stack.enter_context(destination(os.fspath(out), dry_run=dry_run))
        path, write = writer_for(place, format=format, like=like, shard_size=shards)
        refuse_inputs(url or path, opened, kept, rules)
        if resume:
            resuming.refuse(path, url, write)
        if dry_run:
            check_file(planned, kept, path, write)
            return Result(planned, integrity=will)
        if cluster is not None:
            from weightport.cluster import spread

            if executor is not None or url is not None:
                raise Error("cluster: not together with executor, and not for an out by URL, which nobody shares")
            models, ranged = paths(opened) + ([kept.path] if kept is not None else []), getattr(write, "ranged", False)
            executor = stack.enter_context(spread(cluster, path, ranged=ranged, sources=models, files=watch.paths))
        more: Any = {"digests": digests, "metadata": record(opened, rules, __version__, digests), "told": resume}
        begun = resuming.begun(planned, opened, kept, rules, path, write, **more) if resume else None
        journal = begun and stack.enter_context(begun)
        read = write_file(
            planned, opened, kept, path, write, metadata=more["metadata"], progress=progress, watch=watch,
            threads=threads, executor=executor, link=link, journal=journal,
        )  # fmt: skip
        done, again = integrity(planned.moved, opened, digests, read=read), journal.resumed if journal else None
        return Result(planned, path=url or path, integrity=done, resumed=again)


def lock(
    source: Any,
    mapping: AnyMapping,
    *,
    target: Any = None,
    sources: Named = None,
    path: str | os.PathLike[str] | None = None,
) -> str:
    """Write the lock file of a transfer: the digests of everything that decides about its result.

    Args:
        source: a path or an open source.
        mapping: a path, a dict or a loaded mapping.
        target: the file that describes the new model, if the transfer has one.
        sources: name -> path or open source, of the further sources that the mapping names.
        path: where to; by default beside the mapping file, ``asr.lock`` for ``asr.yaml``.

    Returns:
        The path of the lock file, for ``transfer(..., locked=...)``.

    Raises:
        MappingError: the mapping is wrong.
        PlanError: it does not fit the source or the target: what cannot be carried out is not locked.
        FormatError: a file cannot be read.
    """
    from weightport import __version__, lockfile
    from weightport.inputs import expected
    from weightport.plan import plan as make
    from weightport.settle import settled

    rules = load_mapping(mapping)
    if path is None and not rules.path:
        raise Error("the mapping is no file: say where the lock is to be, path='model.lock'")
    where = os.fspath(path) if path is not None else lockfile.default_path(rules.path)
    with ExitStack() as stack:
        opened = stack.enter_context(reading(source, rules, sources))
        kept = stack.enter_context(as_source(target)) if target is not None else None
        expected(opened, None, rules)
        settled(make(opened, kept, rules, target_name=kept.path if kept is not None else ""), opened).check()
        lockfile.write(where, lockfile.described(opened, kept, rules, __version__))
    return where


def _enforce(locked: Any, source: Source, target: Source | None, rules: Rules) -> dict[str, str]:
    """Refuse what is not as it was locked; ``locked`` is a path, True for the lock beside the mapping, or nothing.
    Returns the digests of the sources, by their names, that are locked.
    """
    if not locked:
        return {}
    from weightport import __version__, lockfile

    if locked is True and not rules.path:
        raise Error("the mapping is no file: say where its lock is, locked='model.lock'")
    path = lockfile.default_path(rules.path) if locked is True else os.fspath(locked)
    return lockfile.enforce(path, source, target, rules, __version__)


def verify(
    source: Any,
    out: Any,
    mapping: AnyMapping,
    *,
    live: bool = False,
    sources: Named = None,
    expect_sha256: str | None = None,
) -> Verification:
    """Whether a written model holds what the mapping makes of the source, and each moved cell is the same function.

    Args:
        source: a path or an open source: what the weights came from.
        out: a path or an open source: what was written; or the torch module, JAX tree or nnx module that got the
            values.
        mapping: a path, a dict or a loaded mapping.
        live: run the frameworks' own cells, too, where they are installed.
        sources: name -> path or open source, of the further sources that the mapping names.
        expect_sha256: refuse any other source (:func:`weightport.formats.files.digest`).

    Returns:
        The largest difference of every tensor and every cell; ``equal`` says whether all of them agree.

    Raises:
        MappingError: the mapping is wrong.
        PlanError: it does not fit the two files.
        ConditionError: the source's values do not meet the conditions of the plan.
        FormatError: a file is truncated or corrupt, or the source is not the one that the mapping is for.
    """
    from weightport.inputs import expected
    from weightport.proof import verify as prove

    rules = load_mapping(mapping)
    with reading(source, rules, sources) as opened, as_source(out) as written:
        expected(opened, expect_sha256, rules)
        return prove(opened, written, rules, live=live)


def _into_model(
    source: Any,
    target: Any,
    rules: Rules,
    sources: Named,
    expect_sha256: str | None,
    locked: Any,
    told: Callable[[Plan], None],
    dry_run: bool,
    options: Mapping[str, Any],
) -> Result:
    from weightport.execute import Unchanged, live_values
    from weightport.inputs import expected, files, given_files
    from weightport.integrity import integrity
    from weightport.plan import plan as make
    from weightport.settle import settled
    from weightport.targets.registry import is_graph, live_target

    live = live_target(target, **options)
    # A graph reads when its initializers run: the source is closed with the graph that holds them.
    stays = is_graph(target) and not dry_run
    watch = Unchanged(given_files([source], rules, sources), replaced=stays)  # before any of them is opened
    opened, own = gather(source, rules, sources)
    try:
        watch.add(files(opened))
        digests = expected(opened, expect_sha256, rules) | _enforce(locked, opened, None, rules)
        planned = settled(make(opened, live, rules, target_name=f"the {live.kind} model"), opened)
        told(planned)
        planned.check()
        proven = integrity(planned.moved, opened, digests, done=not (dry_run or stays))
        if dry_run:
            return Result(planned, target, integrity=proven)
        assigned = live.assign(live_values(planned, opened, watch))
        return Result(planned, assigned, frozen=getattr(live, "frozen", None), integrity=proven)
    except BaseException:
        stays = False
        raise
    finally:
        if not stays:
            close(own)
