"""safetensors models in several files: an index (``model.safetensors.index.json``) and the shards that it names.

Promise: opening reads the index and the shards' headers; index and shards must agree exactly (a tensor that is missing,
that no entry lists, or that stands in another shard is an error), and no shard lies outside the index' own folder.
Writing streams shard after shard, under names that an older model there does not use, and renames the index last: a
reader finds the old model or the complete new one; then the older one's shards are removed. Limit: what is said of one
file holds for each shard (no checksums); a tensor is never split, so a shard is as large as its largest tensor at
least; ``total_size`` is not relied upon, since published models have it wrong.

Sources: transformers, docs/source/en/big_models.md ("Sharded checkpoints") and src/transformers/modeling_utils.py;
huggingface_hub, src/huggingface_hub/serialization/_base.py (``split_state_dict_into_shards_factory``).
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, BinaryIO

from weightport.errors import Error, FormatError, TensorNotFound
from weightport.formats import _fs, _inside, safetensors_file, tf_paths
from weightport.formats._io import ByteFile
from weightport.formats._ranged import Place, Ranged
from weightport.formats._temporaries import Parts, commit, temporary
from weightport.tensors import Array, Budget, Extent, Index, Kept, TensorSpec, Tiles

#: What the name of an index ends in.
ENDING = ".safetensors.index.json"
#: Bytes of tensors in one shard that is written, unless another size is asked for.
SHARD_BYTES = 5_000_000_000
_MAP = "weight_map"
_NO_MAP = f"the index has no {_MAP!r} of tensors to files"
_HEAD = 1 << 16
_MAPPED = re.compile(rb'"weight_map"\s*:\s*(?:\{\s*\}|.*\.safetensors)', re.DOTALL)


class ShardedSource:
    """An open sharded model. ``metadata`` is the index' own; ``files`` are the index and its shards.

    Attributes:
        ending: what the name of an index ends in.
    """

    format = "safetensors"
    ending = ENDING

    def __init__(self, path: str, *, budget: Budget | None = None) -> None:
        self.path = path
        self._index = index_of(path, self.ending)
        self.metadata: dict[str, Any] = {}
        self._shards: dict[str, Any] = {}
        self._specs: dict[str, TensorSpec] = {}
        budget = budget or Budget()
        try:
            self._map, self.metadata = read_index(self._index, budget)
            for shard in shards_of(self._index, self._map):
                self._shards[shard] = self._opened(beside(self._index, shard), budget)
            self._agree()
        except BaseException:
            self.close()
            raise

    def _opened(self, path: str, budget: Budget) -> Any:
        """A shard."""
        return safetensors_file.SafetensorsSource(path, budget=budget)

    def _agree(self) -> None:
        for name, shard in self._map.items():
            spec = self._shards[shard].specs().get(name)
            if spec is None:
                where = next((s for s, source in self._shards.items() if name in source.specs()), None)
                what = f"is not in the shard {shard!r} that the index names"
                hint = f"it stands in {where!r}" if where else "is the shard another model's, or not downloaded whole?"
                raise FormatError(self._index, what, tensor=name, hint=hint)
            self._specs[name] = spec
        for shard, source in self._shards.items():
            for name in source.specs():
                if self._map.get(name) != shard:
                    other = f", which the index has in {self._map[name]!r}" if name in self._map else ""
                    what = f"stands in the shard {shard!r}" + (other or ", and the index does not list it")
                    raise FormatError(self._index, what, tensor=name)

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec, in the order of the index."""
        return self._specs

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor or the part of it that ``index`` cuts out; only its byte ranges are read."""
        shard = self._map.get(name)
        if shard is None:
            raise TensorNotFound(name, self._specs, self.path)
        values: Array = self._shards[shard].read(name, index)
        return values

    def extent(self, name: str) -> Extent | None:
        """Where the tensor lies."""
        shard = self._map.get(name)
        if shard is None:
            raise TensorNotFound(name, self._specs, self.path)
        place: Extent | None = self._shards[shard].extent(name)
        return place

    def checksum(self, name: str) -> str:
        """What the tensor's shard has; see :func:`weightport.integrity.checksum_of`."""
        checksum = getattr(self._shards[self._map[name]], "checksum", None) if name in self._map else None
        return "" if checksum is None else str(checksum(name))

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:  # noqa: ARG002
        """Nothing: the format stores no cells."""
        return {}

    def close(self) -> None:
        """Release the files."""
        for shard in self._shards.values():
            shard.close()

    def __enter__(self) -> ShardedSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sniff(path: str) -> bool:
    """Whether this is safetensors: one file, an index, or a folder that holds one."""
    return is_sharded(path) or (_fs.isfile(path) and safetensors_file.sniff(path))


def is_sharded(path: str, ending: str = ENDING, mapped: re.Pattern[bytes] = _MAPPED) -> bool:
    """Whether this is an index, or a folder that holds one and nothing of TensorFlow's that says what is in it.

    Args:
        path: a file or folder.
        ending: of an index' name.
        mapped: what an index says of its shards.
    """
    if _fs.isdir(path):
        return not tf_paths.is_told(path) and in_folder(path, ending) is not None
    return _fs.isfile(path) and is_index(path, mapped)


def is_index(path: str, mapped: re.Pattern[bytes] = _MAPPED) -> bool:
    """Whether the file is JSON with a ``weight_map`` to ``.safetensors`` files, or to those of another pattern."""
    try:
        with ByteFile(path) as file:
            head = file.read(0, min(_HEAD, file.size))
    except FormatError:
        return False
    return head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{") and mapped.search(head) is not None


def in_folder(folder: str, ending: str = ENDING) -> str | None:
    """The one index in a folder; None if there is none, or several."""
    try:
        found = sorted(name for name in _fs.listdir(folder) if name.endswith(ending))
    except OSError:
        return None
    return os.path.join(folder, found[0]) if len(found) == 1 else None


def index_of(path: str, ending: str = ENDING) -> str:
    """The index itself, where a path is the folder that holds one.

    Raises:
        FormatError: it holds none, or several.
    """
    if not _fs.isdir(path):
        return path
    found = in_folder(path, ending)
    if found is None:
        raise FormatError(path, f"is a folder without exactly one file that ends in {ending}")
    return found


def read_index(path: str, budget: Budget) -> tuple[dict[str, str], dict[str, Any]]:
    """Tensor -> shard, and the index' metadata.

    Raises:
        FormatError: no JSON, or not as an index is; a name twice.
    """
    weights, metadata = read_map(path, budget)
    if not all(isinstance(shard, str) for shard in weights.values()):
        raise FormatError(path, _NO_MAP)
    return weights, metadata


def read_map(path: str, budget: Budget) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ``weight_map`` of an index and its metadata, as they stand there.

    Raises:
        FormatError: no JSON, or none with a ``weight_map``; a name twice.
    """
    with ByteFile(path) as file:
        budget.spend("header_bytes", file.size, path)
        raw = file.read(0, file.size)

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in found:
            if key in seen:
                raise FormatError(path, f"the index has the key {key!r} twice")
            seen[key] = value
        return seen

    try:
        document = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=pairs)
    except FormatError:
        raise
    except UnicodeDecodeError as error:
        raise FormatError(path, "the index is no UTF-8", offset=error.start) from None
    except json.JSONDecodeError as error:
        at = len(error.doc[: error.pos].encode("utf-8"))
        raise FormatError(path, f"the index is no JSON: {error.msg}", offset=at) from None
    except (RecursionError, ValueError):
        raise FormatError(path, "the index is no JSON: nested too deep, or too long a number") from None
    weights = document.get(_MAP) if isinstance(document, dict) else None
    if not isinstance(weights, dict):
        raise FormatError(path, _NO_MAP)
    budget.check("tensors", len(weights), path)
    metadata = document.get("metadata")
    return weights, metadata if isinstance(metadata, dict) else {}


def shards_of(index: str, weights: Mapping[str, str]) -> list[str]:
    """The shards in the order in which they are first named, each beneath the index' folder.

    Raises:
        FormatError: a name that could lead out of it.
    """
    found = list(dict.fromkeys(weights.values()))
    for shard in found:
        if not is_below(shard):
            tensor = next(name for name, value in weights.items() if value == shard)
            raise FormatError(index, f"the shard {shard!r} is no path below the index' folder: refused", tensor=tensor)
    return found


def is_below(shard: str) -> bool:
    """Whether a shard's name cannot lead out of the folder of its index."""
    parts = shard.replace("\\", "/").split("/")
    plain = all(part and part not in (".", "..") for part in parts)
    return plain and "\0" not in shard and not os.path.splitdrive(shard)[0]


def beside(index: str, shard: str) -> str:
    """The path of a shard.

    Raises:
        FormatError: it is a link that leads out of the folder.
    """
    return _inside.refuse_outside(os.path.join(os.path.dirname(index), *shard.split("/")), _inside.folders_of(index))


def files_of(path: str, ending: str = ENDING) -> list[str]:
    """The index and its shards, in the order of their names.

    Raises:
        FormatError: no index.
    """
    index = index_of(path, ending)
    weights, _ = read_index(index, Budget())
    return sorted([index, *(beside(index, shard) for shard in shards_of(index, weights))])


def open_source(path: str, *, budget: Budget | None = None) -> ShardedSource | safetensors_file.SafetensorsSource:
    """Open a ``.safetensors`` file, the index of a sharded model, or the folder that holds one.

    Raises:
        FormatError: truncated, corrupt, or no safetensors; index and shards do not agree.
    """
    if _fs.isdir(path) or is_index(path):
        return ShardedSource(path, budget=budget)
    return safetensors_file.open_source(path, budget=budget)


# -- writing -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _destination(
    path: str,
    specs: Mapping[str, TensorSpec],
    tiles: Tiles,  # noqa: ARG001
    *,
    metadata: Mapping[str, str] | None = None,
    kept: Kept | None = None,
    shard_size: int = SHARD_BYTES,
) -> Iterator[Place]:
    """Write an index and its shards.

    Args:
        path: the index; its name ends in ``.safetensors.index.json``.
        specs: name -> dtype and shape; the tensors are dealt out to the shards in this order.
        tiles: yields each tensor's consecutive tiles along axis 0.
        metadata: becomes the ``__metadata__`` of every shard, and stands in the index, too.
        shard_size: a shard holds no more than this, unless a single tensor does.

    Raises:
        Error: a dtype or name that the format cannot hold, values that are not as their spec says, or a path that is
            no index. Nothing was changed.
    """
    if not path.endswith(ENDING):
        raise Error(f"{path}: the index of a sharded model is named like 'model{ENDING}'")
    if shard_size < 1:
        raise Error(f"{path}: a shard of {shard_size} bytes holds nothing")
    final = _fs.realpath(path)
    folder, base = os.path.split(final)
    stem = base.removesuffix(ENDING)
    total = sum(TensorSpec.of(spec.dtype, spec.shape).nbytes for spec in specs.values() if spec.dtype.kind != "O")
    dealt = _dealt(specs, shard_size)
    pattern = re.compile(rf"{re.escape(stem)}(?:\.\d+)?-\d{{5,}}-of-\d{{5,}}\.safetensors")

    def old() -> list[str]:
        named = _named_by(final)
        shards = filter(pattern.fullmatch, os.listdir(folder))
        return [name for name in shards if name in named or _is_ours(os.path.join(folder, name))]

    def index(out: BinaryIO, names: Sequence[str]) -> None:
        weights = {name: shard for shard, group in zip(names, dealt, strict=True) for name in group}
        document = {"metadata": {"total_size": total, **(metadata or {})}, _MAP: weights}
        try:
            out.write(json.dumps(document, indent=2, ensure_ascii=False).encode("utf-8") + b"\n")
        except UnicodeEncodeError:
            raise Error(f"{path}: the name of the file, and so of its shards, is no valid text") from None

    try:
        with temporary(final, kept=kept) as (_, made), open(made, "r+b") as out, Parts(made, kept) as parts:
            places: dict[str, tuple[str, int]] = {}
            for group in dealt:
                part = {name: specs[name] for name in group}
                places.update(safetensors_file.begin(path, parts.create(), part, metadata))
            yield Place(places)
            parts.sync()
            names = partial(_free_names, folder, stem, len(dealt))
            commit(final, out, made, parts.paths, old=old, names=names, write=index)
    except OSError as error:
        raise Error(f"{path}: cannot be written: {error.strerror or error}") from error


def _named_by(index: str) -> set[str]:
    """The shards of a model that is overwritten."""
    try:
        weights, _ = read_index(index, Budget())
    except FormatError:
        return set()
    return set(weights.values())


def _is_ours(path: str) -> bool:
    """Whether weightport wrote a shard, by its provenance."""
    try:
        with safetensors_file.open_source(path) as source:
            return "weightport.version" in source.metadata
    except Error:
        return False


write = Ranged(_destination)


def _dealt(specs: Mapping[str, TensorSpec], shard_size: int) -> list[list[str]]:
    """The tensors of each shard: in order, each shard filled before the next is begun."""
    found: list[list[str]] = [[]]
    held = 0
    for name, spec in specs.items():
        if found[-1] and held + spec.nbytes > shard_size:
            found.append([])
            held = 0
        found[-1].append(name)
        held += spec.nbytes
    return found


def _free_names(folder: str, stem: str, count: int) -> list[str]:
    """Names of shards of which none is there yet, so that the model that is replaced stays whole until the end."""
    number = 0
    while True:
        infix = f".{number}" if number else ""
        names = [f"{stem}{infix}-{at + 1:05}-of-{count:05}.safetensors" for at in range(count)]
        if not any(_fs.lexists(os.path.join(folder, name)) for name in names):
            return names
        number += 1
