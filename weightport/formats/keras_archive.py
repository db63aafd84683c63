"""Models in Keras' own format: ``.keras`` archives of Keras 2.12 and later, and folders with the same files.

Promise: the configuration is read as plain JSON, and nothing of it is looked up or run, a Lambda layer's code included;
the weights are read in place, by position, without unpacking the archive. Names are the variables' paths in the model
(:mod:`~weightport.formats.keras_objects`); a name in the file (``layers/lstm/cell/vars/0``) is read, too, and
:meth:`KerasSource.raw_names` says which is which. Optimizer state has its role. An archive's CRC covers all of its
weights at once: it is checked when the first value is read, in one pass over the archive's weights. Limits: weights of
the pickled kind (``model.weights.npz``) are refused; weights that somebody compressed are unpacked into an unnamed
temporary file, up to the budget's ``header_bytes``.

Source: keras/src/saving/saving_lib.py (``_save_model_to_fileobj``, ``_save_model_to_dir``).
"""

from __future__ import annotations

import os
import tempfile
import threading
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

from weightport.checksums import CRC32
from weightport.errors import FormatError, TensorNotFound
from weightport.formats import _beside, _fs, keras_config, keras_h5, keras_objects, keras_sharded, tf_paths
from weightport.formats._io import ByteFile, Bytes
from weightport.formats._zipmember import LOCAL, Deflated, Stored, directory, member_of
from weightport.formats.keras_h5 import KerasH5Source
from weightport.tensors import Array, Budget, Index, TensorSpec

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
#: In a folder, the weights may lie in several files: KerasHub's presets of large models.
SHARDED = "model.weights.json"
_PICKLED = "model.weights.npz"


class KerasSource:
    """An open model.

    Attributes:
        metadata: what ``metadata.json`` says (``keras_version``, ``date_saved``), and weightport where it wrote it.
        root: the scope of the model's own before its variables' names (``sequential``); a mapping may leave it out.
        weights: the weights file inside, under the names in it.
        aliases: name in the file -> name that is listed; mappings may use either.
    """

    format = "keras"

    def __init__(self, path: str, *, budget: Budget | None = None) -> None:
        self.path = path
        self._budget = budget or Budget()
        self.metadata: dict[str, Any] = {}
        self._file: ByteFile | None = None
        self._lock = threading.Lock()
        self._unverified: Stored | Deflated | None = None
        self._unpacked: ByteFile | None = None
        try:
            self.weights: KerasH5Source | keras_sharded.KerasShardedSource
            if _fs.isdir(path):
                config = self._folder()
            else:
                config, weights = self._archive()
                self.weights = keras_h5.open_source(path, budget=self._budget, file=weights)
            self.metadata |= {k: v for k, v in self.weights.metadata.items() if k in _beside.KEYS}
            groups, titles, objects = self.weights.objects()
            found = keras_objects.named(groups, titles, objects, config, self._major())
        except BaseException:
            self.close()
            raise
        self.root = found.root
        self._facts = found.facts
        stored = self.weights.specs()
        #: name -> name in the file; what Keras did not write by its objects stands at the end.
        self._stored = {name: raw for raw, name in found.names.items() if raw in stored}
        self._stored.update((raw, raw) for raw in stored if raw not in found.names)
        self._specs = {name: stored[raw] for name, raw in self._stored.items()}
        self.aliases = {raw: name for name, raw in self._stored.items() if raw != name}

    # -- opening ------------------------------------------------------------------------------------------------------

    def _archive(self) -> tuple[Mapping[str, Any], Bytes]:
        self._file = file = ByteFile(self.path)
        infos, _ = directory(file)
        self._budget.check("tensors", len(infos), self.path)
        members: dict[str, zipfile.ZipInfo] = {}
        for info in infos:
            if info.filename in members:
                what = f"two members are called {info.filename!r}"
                raise FormatError(self.path, what, offset=info.header_offset)
            members[info.filename] = info
        if CONFIG not in members:
            raise FormatError(self.path, f"is no .keras archive: it has no {CONFIG}")
        texts = {}
        for name in (CONFIG, METADATA):
            if name in members:
                member = member_of(file, members[name], name, ratio=self._budget.ratio)
                self._budget.spend("header_bytes", member.size, self.path)
                texts[name] = member.read(0, member.size, tensor=name)
                member.verify(name)
        config = self._described(texts.get(CONFIG, b""), texts.get(METADATA))
        if WEIGHTS not in members:
            raise self._weightless(_PICKLED in members)
        self._unverified = found = member_of(file, members[WEIGHTS], WEIGHTS, ratio=self._budget.ratio)
        return config, found if isinstance(found, Stored) else self._unpack(found)

    def _folder(self) -> Mapping[str, Any]:
        texts: dict[str, bytes | None] = {}
        for name in (CONFIG, METADATA):
            path = os.path.join(self.path, name)
            texts[name] = None
            if name == CONFIG or _fs.isfile(path):
                with ByteFile(path) as file:
                    self._budget.spend("header_bytes", file.size, path)
                    texts[name] = file.read(0, file.size)
        config = self._described(texts[CONFIG] or b"", texts[METADATA])
        whole, sharded = (os.path.join(self.path, name) for name in (WEIGHTS, SHARDED))
        if _fs.isfile(whole):
            self.weights = keras_h5.open_source(whole, budget=self._budget)
        elif _fs.isfile(sharded):
            self.weights = keras_sharded.open_source(sharded, budget=self._budget)
        else:
            raise self._weightless(_fs.isfile(os.path.join(self.path, _PICKLED)))
        return config

    def _described(self, config: bytes, metadata: bytes | None) -> Mapping[str, Any]:
        self.metadata.update(keras_config.document(metadata, self.path, METADATA) if metadata is not None else {})
        return keras_config.document(config, self.path, CONFIG)

    def _major(self) -> int:
        """Keras' major version; archives came with Keras 2.12."""
        return 2 if str(self.metadata.get("keras_version", "")).startswith("2.") else 3

    def _weightless(self, pickled: bool) -> FormatError:
        if pickled:
            hint = "load it where you trust it and save it again, in the format that Keras has by default"
            return FormatError(self.path, f"its weights are pickled ({_PICKLED}): never loaded here", hint=hint)
        return FormatError(self.path, f"has no {WEIGHTS}")

    def _unpack(self, member: Deflated) -> Stored:
        """Weights that are compressed, in a file that has no name and goes with the process."""
        self._budget.spend("header_bytes", member.size, self.path)
        member.verify(WEIGHTS)
        self._unverified = None
        with tempfile.NamedTemporaryFile(prefix="weightport-") as unpacked:
            for at in range(0, member.size, 1 << 20):
                unpacked.write(member.read(at, min(1 << 20, member.size - at), tensor=WEIGHTS))
            unpacked.flush()
            self._unpacked = ByteFile(unpacked.name)
        return Stored(self._unpacked, 0, member.size, None)

    # -- the protocol -------------------------------------------------------------------------------------------------

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec, in the model's order of layers where the configuration says it."""
        return self._specs

    def raw_names(self) -> Mapping[str, str]:
        """Name in the file -> name that :meth:`specs` lists."""
        return {raw: name for name, raw in self._stored.items()}

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor or a part of it; ``name`` is as in :meth:`specs`, or that in the file."""
        raw = self._stored.get(name, name)
        if raw not in self.weights.specs():
            raise TensorNotFound(name, self._specs, self.path)
        with self._lock:  # of several readers, one checks and the others wait
            if self._unverified is not None:
                self._unverified.verify(WEIGHTS)
                self._unverified = None
        return self.weights.read(raw, index)

    def checksum(self, name: str) -> str:
        """The CRC-32 of an archive's weights; in a folder, what the weights' own file has."""
        return CRC32 if self._file is not None else self.weights.checksum(self._stored.get(name, name))

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What the configuration records about the RNN cell that owns these variables, and who wrote the file.

        Keys: those of :mod:`~weightport.formats.keras_config`, and ``keras_version``; where the variables' owners
        differ, only what they have in common.
        """
        common: dict[str, Any] | None = None
        for name in names:
            found = self._facts.get(self._stored.get(name, name), {})
            common = dict(found) if common is None else {k: v for k, v in common.items() if found.get(k, _ABSENT) == v}
        version = self.metadata.get("keras_version")
        return {**(common or {}), **({"keras_version": version} if isinstance(version, str) else {})}

    def close(self) -> None:
        """Release the file."""
        if hasattr(self, "weights"):
            self.weights.close()
        for file in (self._file, self._unpacked):
            if file is not None:
                file.close()

    def __enter__(self) -> KerasSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_ABSENT = object()


def files_of(folder: str) -> list[str]:
    """The files of a model in a folder, in the order of their names."""
    found = [path for name in (CONFIG, METADATA, WEIGHTS) if _fs.isfile(path := os.path.join(folder, name))]
    if not _fs.isfile(os.path.join(folder, WEIGHTS)):
        found += keras_sharded.files_of(os.path.join(folder, SHARDED))
    return sorted(found)


def sniff(path: str) -> bool:
    """Whether this is an archive, or a folder, with a configuration and weights in it."""
    if _fs.isdir(path):
        there = {name for name in (CONFIG, WEIGHTS, SHARDED) if _fs.isfile(os.path.join(path, name))}
        return CONFIG in there and len(there) > 1 and not tf_paths.is_told(path)
    try:
        with ByteFile(path) as file:
            if file.size < 4 or file.read(0, 4) != LOCAL:
                return False
            names = {info.filename for info in directory(file)[0]}
    except FormatError:
        return False
    return CONFIG in names and bool(names & {WEIGHTS, _PICKLED})


def open_source(path: str, *, budget: Budget | None = None) -> KerasSource:
    """Open a ``.keras`` archive, or a folder with its files.

    Raises:
        FormatError: truncated, corrupt, or no model of Keras 3.
    """
    return KerasSource(path, budget=budget)
