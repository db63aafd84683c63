"""The files that a model is made of, and their digest.

Promise: the digest of a model in one file is that file's SHA-256, as ``sha256sum`` prints it; of a model in several,
the SHA-256 of the lines ``<sha256>  <name>`` of its files, sorted by name, as ``sha256sum`` prints them for files of
one folder.
"""

from __future__ import annotations

import hashlib
import os

from weightport.formats import _fs, _inside, _jax_paths, keras_archive, keras_sharded, safetensors_index, tf_paths
from weightport.formats._io import ByteFile
from weightport.formats.detect import split_format


def files_of(path: str | os.PathLike[str]) -> list[str]:
    """Every file of the model at a path (``FORMAT:PATH`` too), in the order of their names.

    Raises:
        FormatError: there is no such file or checkpoint.
    """
    _, text = split_format(os.fspath(path))
    if _fs.isdir(text) and keras_archive.sniff(text):
        return keras_archive.files_of(text)
    if safetensors_index.is_sharded(text):
        return safetensors_index.files_of(text)
    if _fs.isdir(text) or text.endswith(".json"):
        from weightport.formats import flax_index, torch_index  # which most transfers do not need

        if torch_index.is_sharded(text):
            return torch_index.files_of(text)
        if flax_index.is_sharded(text):
            return flax_index.files_of(text)
    if _fs.isfile(text) and keras_sharded.sniff(text):
        return keras_sharded.files_of(text)
    if _fs.isfile(text) and not text.endswith(".index") and os.path.basename(text) != tf_paths.STATE:
        return [text, *_beside(text)]
    jax = _jax_paths.find(text)
    if jax is not None:
        return _below(jax.path, _jax_paths.METADATA, _jax_paths.MANIFEST) if _fs.isdir(jax.path) else [jax.path]
    resolved = tf_paths.resolve(text)
    if resolved.kind == "saved_model":
        return _below(resolved.prefix, *tf_paths.SAVED_MODEL)
    if resolved.kind == "v2":
        folders = _inside.folders_of(resolved.paths[0])
        shards = tf_paths.shards_beside(resolved.prefix)
        return sorted([*resolved.paths, *(_inside.refuse_outside(shard, folders) for shard in shards)])
    return sorted(resolved.paths)


def _below(folder: str, *marks: str) -> list[str]:
    """All files in a folder, which its links must not lead out of; ``marks`` are the files that say what it is."""
    folders = _inside.roots_of(folder, *marks)
    found = sorted(os.path.join(above, name) for above, _, names in _fs.walk(folder) for name in names)
    return [_inside.refuse_outside(path, folders) for path in found]


def _beside(path: str) -> list[str]:
    """The files that a model's values lie in beside its own: those of ONNX."""
    from weightport.formats import onnx_file  # which most transfers do not need

    if not onnx_file.sniff(path):
        return []
    with onnx_file.open_source(path) as model:
        return model.files()


def replaced(path: str) -> set[str]:
    """What writing to a path replaces or removes, there or not: a sharded model goes with its shards."""
    found = {path, f"{path}.index"}
    if _fs.isfile(path) and safetensors_index.is_sharded(path):
        found.update(safetensors_index.files_of(path))
    elif _fs.isfile(path):
        found.update(_beside(path))
    elif any(_fs.isfile(os.path.join(path, name)) for name in tf_paths.SAVED_MODEL):
        found.update(os.path.join(folder, name) for folder, _, names in _fs.walk(path) for name in names)
    return found


def digest(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a model's content, in hexadecimal; see the module for models of several files.

    Raises:
        FormatError: a file is missing or cannot be read.
    """
    files = files_of(path)
    if len(files) == 1:
        return _sha256(files[0])
    base = os.path.commonpath(files)
    lines = sorted((os.path.relpath(f, base), _sha256(f)) for f in files)
    return hashlib.sha256("".join(f"{value}  {name}\n" for name, value in lines).encode()).hexdigest()


def _sha256(path: str) -> str:
    found = hashlib.sha256()
    with ByteFile(path) as file:
        for chunk in file.chunks(0, file.size):
            found.update(chunk)
    return found.hexdigest()
