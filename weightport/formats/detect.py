"""Which format a path is, by its content, and which writer an output path means.

Promise: a suffix never decides what is read; ``FORMAT:PATH`` does, and otherwise the bytes; what is no model file is
one error that says what the file looks like. Pickles are recognised, never loaded. Limit: an output's format is told by
its suffix, since there is nothing there yet.
"""

from __future__ import annotations

import os
import re
from typing import Any

from weightport.errors import Error, FormatError, Problem, closest
from weightport.formats import _fs, _table, tf_paths
from weightport.formats._io import ByteFile, Stream
from weightport.formats._writer import Writer, module
from weightport.tensors import Budget, FileWriter, Source

#: name -> module that reads it.
READERS = {
    "tf-checkpoint": "tf_bundle",
    "tf-checkpoint-v1": "tf_v1",
    "tf-frozen": "tf_frozen",
    "tf-meta": "tf_meta",
    "tf-saved-model": "tf_saved_model",
    "keras-h5": "keras_h5",
    "hdf5": "keras_h5",
    "keras": "keras_archive",
    "keras-sharded": "keras_sharded",
    "npz": "npz",
    "npy": "npz",
    "safetensors": "safetensors_index",
    "flax-msgpack": "flax_index",
    "orbax": "orbax_folder",
    "torch": "torch_index",
    "onnx": "onnx_file",
    "tflite": "tflite_file",
    "gguf": "gguf_file",
}
#: name -> module that writes it.
WRITERS = {
    "npz": "npz",
    "safetensors": "safetensors_file",
    "safetensors-index": "safetensors_index",
    "keras-h5": "keras_h5_write",
    "keras": "keras_archive_write",
    "tf-checkpoint": "tf_bundle_write",
    "flax-msgpack": "flax_msgpack_write",
    "torch": "torch_write",
    "onnx": "onnx_write",
    "tf-frozen": "tf_graph_write",
    "tf-meta": "tf_graph_write",
    "tf-saved-model": "tf_saved_model_write",
}
#: Formats that are written with the structure of a TARGET -> module that reads that.
_LIKE = {
    "keras-h5": "keras_h5",
    "keras": "keras_archive",
    "tf-checkpoint": "tf_bundle",
    "flax-msgpack": "flax_msgpack",
    "onnx": "onnx_file",
    "tf-frozen": "tf_frozen",
    "tf-meta": "tf_meta",
    "tf-saved-model": "tf_saved_model",
}
#: Formats that are a TARGET with other values in it: without one of the same kind they cannot be written.
_EDITED = ("tf-frozen", "tf-meta", "tf-saved-model", "onnx")
#: Formats that are written in several files of bounded size where that is asked for.
_SHARDED = ("tf-checkpoint", "tf-saved-model", "safetensors-index")
#: suffix -> what an output of that name is.
SUFFIXES = {
    ".npz": "npz",
    ".safetensors": "safetensors",
    ".safetensors.index.json": "safetensors-index",
    ".h5": "keras-h5",
    ".hdf5": "keras-h5",
    ".keras": "keras",
    ".ckpt": "tf-checkpoint",
    ".msgpack": "flax-msgpack",
    ".pt": "torch",
    ".pth": "torch",
    ".bin": "torch",
    ".onnx": "onnx",
    ".pb": "tf-frozen",
    ".meta": "tf-meta",
}
# By content: files with a magic number, and after the tables of checkpoints those that only have a structure.
_BY_MAGIC = ("keras-h5", "npz", "torch", "keras", "safetensors", "keras-sharded", "tflite", "gguf")
_BY_STRUCTURE = ("onnx", "flax-msgpack", "tf-saved-model", "tf-meta", "tf-frozen")
# Folders that are no TensorFlow checkpoint and no SavedModel.
_BY_FOLDER = ("keras", "safetensors", "torch", "flax-msgpack", "orbax")
_CHECKPOINTS = {"v2": "tf-checkpoint", "v1": "tf-checkpoint-v1", "v1-sharded": "tf-checkpoint-v1"}
_FORMAT = re.compile(r"([A-Za-z][A-Za-z0-9_-]+):(?!//)(.+)", re.DOTALL)


def split_format(path: str) -> tuple[str | None, str]:
    """``FORMAT:PATH`` as its two parts; the format is None where the path names none.

    A single letter is a drive, ``x://`` a URL, and a path that exists as it stands is that path. What a user types
    comes through here: a URL becomes the path that :mod:`~weightport.formats._fs` knows.

    Raises:
        MissingPackage: what reads such a URL is not installed.
        Error: a format that is not known; the message lists those that are.
    """
    if _fs.is_url(path):
        return None, _fs.placed(path)
    match = _FORMAT.fullmatch(path)
    if match is None:
        return None, path
    name, rest = match[1], match[2]
    if name in READERS:
        return name, _fs.placed(rest)
    if os.sep in path[: len(name)] or _fs.lexists(path) or _fs.lexists(path + ".index"):
        return None, path
    near = closest(name, READERS)
    raise Error(f"{path}: unknown format {name!r}; known: {', '.join(READERS)}" + (f"; {near}" if near else ""))


def open_source(path: str | os.PathLike[str], *, budget: Budget | None = None) -> Source:
    """Open a model file, whatever its format: ``FORMAT:PATH``, a file, a checkpoint's prefix, or a folder.

    Raises:
        FormatError: missing, truncated, corrupt, or of no format that is known.
        Error: an unknown FORMAT.
    """
    text = os.fspath(path)
    if not text or "\0" in text:
        raise Error(f"{text!r} is no path")
    name, rest = split_format(text)
    _fs.fresh(rest)
    found = name or detect(rest)
    source: Source = module(READERS[found]).open_source(rest, budget=budget)
    if name is not None and source.format != name and {source.format, name} != {"keras-h5", "hdf5"}:
        source.close()
        raise FormatError(rest, f"is {source.format}, not {name}")
    return source


def detect(path: str) -> str:
    """The format of a file, prefix or folder, a key of :data:`READERS`.

    Raises:
        FormatError: it is not there, or of no format that is known.
    """
    if _fs.isfile(path):
        for name in _likely_first(path):
            if _sniffs(name, path):
                return "npy" if name == "npz" and _is_array(path) else name
        if not _table.has_magic(path) and not _names_checkpoint(path):
            for name in _BY_STRUCTURE:
                if _sniffs(name, path):
                    return name
            raise unknown(path)
    elif _fs.isdir(path):
        for name in _BY_FOLDER:
            if _sniffs(name, path):
                return name
    kind = tf_paths.resolve(path).kind
    return _CHECKPOINTS.get(kind, "tf-saved-model")


def _likely_first(path: str) -> list[str]:
    """The formats with a magic number. What a path is called says which to look for first, so that looking is quick;
    what it is, only its content says. A table of TensorFlow's is none of them.
    """
    if _table.has_magic(path):
        return []
    likely = _by_suffix(path)
    return sorted(_BY_MAGIC, key=lambda name: name != likely)


def _sniffs(name: str, path: str) -> bool:
    found: bool = module(READERS[name]).sniff(path)
    return found


def _is_array(path: str) -> bool:
    with ByteFile(path) as file:
        return file.read(0, 1) == b"\x93"


def _names_checkpoint(path: str) -> bool:
    """Whether a file that is no table leads to a checkpoint: a data shard, a state file, one beside an index."""
    base = os.path.basename(path)
    if base == "checkpoint" or _fs.isfile(path + ".index"):
        return True
    data = re.fullmatch(r"(.*)\.data-\d{5}-of-\d{5}", path, re.DOTALL)
    return data is not None and _fs.isfile(data[1] + ".index")


# -- what it looks like --------------------------------------------------------------------------------------------


def unknown(path: str) -> FormatError:
    """The error for a file of no known format, saying what its first bytes look like."""
    with ByteFile(path) as file:
        head = file.read(0, min(512, file.size))
    if not head:
        return FormatError(path, "is an empty file")
    what, hint = _looks(path, head)
    return FormatError(path, f"is no model file that weightport reads: {what}", hint=hint)


def _looks(path: str, head: bytes) -> tuple[str, str]:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"version https://git-lfs.github.com/"):
        return "this is a Git LFS pointer", "fetch the real file: git lfs pull"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "this is a web page, maybe an error instead of the download", "download it again"
    if head.startswith(b"PK\x03\x04"):
        return _looks_zip(path)
    if head[:1] == b"\x80" and len(head) > 1 and head[1] in range(1, 6):
        return "this is a pickle, which can run code when it is loaded: never loaded here", _RESAVE
    if head.startswith(b"\x1f\x8b"):
        return "this is compressed with gzip", "unpack it first"
    for magic, name in ((b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")):
        if head.startswith(magic):
            return f"this is compressed with {name}", "unpack it first"
    if head[257:262] == b"ustar":
        return "this is a tar archive", "unpack it first"
    if head[:4] in (b"lmgg", b"fmgg", b"tjgg", b"GGML"):
        return "this is a model of llama.cpp's, of before GGUF: not supported", "convert it to GGUF"
    if b"onnx" in head or b"pytorch" in head or re.match(rb"\x08[\x01-\x0f]\x12", head):
        return "this may be an ONNX model, cut off or damaged", "get the file again"
    if text[:1] in (b"{", b"["):
        return "this is JSON", ""
    if not re.search(rb"[^\t\n\r\x20-\x7e]", head):
        return f"this is text that begins with {head[:24].decode('ascii')!r}", ""
    return f"it begins with the bytes {head[:8].hex(' ')}", ""


_RESAVE = "save its tensors as .safetensors or .npz where you trust it"


def _looks_zip(path: str) -> tuple[str, str]:
    try:
        import zipfile

        with ByteFile(path) as file, zipfile.ZipFile(Stream(file)) as archive:
            names = [info.filename for info in archive.infolist()[:200]]
    except Exception:
        return "this is a zip archive, truncated or corrupt", ""
    if "serialized_state_dict.pt" in names:
        return (
            "this is a torch.export archive of before PyTorch 2.7",
            "its serialized_state_dict.pt can be unpacked and read",
        )
    if "model.weights.h5" in names:
        return "this is a .keras archive without its config.json", ""
    return "this is a zip archive" + (f" that begins with {names[0]!r}" if names else ""), ""


# -- writers -------------------------------------------------------------------------------------------------------


def writer_for(
    out: str, *, format: str | None = None, like: str | None = None, shard_size: int | None = None
) -> tuple[str, FileWriter]:
    """The path to write to and the function that writes it.

    Args:
        out: ``FORMAT:PATH``, or a path whose suffix says the format.
        format: a format that wins over both.
        like: a TARGET file: an ``.h5`` is written with its structure, a TensorFlow checkpoint with its object graph.
        shard_size: bytes of values in one file, for formats of several.

    Raises:
        Error: no such format, none that the path implies, or one that is not written in shards.
    """
    named, path = _split_out(out)
    chosen = format or named or _by_suffix(path)
    if like is not None and chosen in (None, "tf-frozen", "tf-saved-model") and _is_saved_model(path, like):
        chosen = "tf-saved-model"
        path = (os.path.dirname(path) or ".") if os.path.basename(path) in tf_paths.SAVED_MODEL else path
    if chosen == "hdf5":
        chosen = "keras-h5"
    if chosen not in WRITERS:
        known = ", ".join(WRITERS)
        if chosen is not None:
            near = closest(chosen, WRITERS)
            raise Error(
                f"{out}: the format {chosen!r} cannot be written; known: {known}" + (f"; {near}" if near else "")
            )
        raise Error(
            f"{out}: the suffix says no format to write; known: {', '.join(SUFFIXES)}, or --format with one of {known}"
        )
    told: dict[str, Any] = {}
    if shard_size is not None:
        if chosen not in _SHARDED:
            raise Error(f"{out}: {chosen} is not written in shards; known: {', '.join(_SHARDED)}")
        told["shard_size"] = shard_size
    if chosen in _LIKE and like is not None:
        _, like_path = split_format(like)
        by_objects = chosen == "keras-h5" and path.lower().endswith(".weights.h5")
        readers = [_LIKE[chosen], *([_LIKE["keras"]] if by_objects else [])]
        if any(module(reader).sniff(like_path) for reader in readers):
            told["like"] = like_path
    if chosen in _EDITED and "like" not in told:
        given = f"{like} is {detect(split_format(like)[1])}" if like is not None else "there is none"
        what = f"{chosen} is written as a TARGET of that kind with other values in it: {given}"
        raise Error(Problem(out, what, "give the new model in that format as the TARGET, or write another format"))
    return path, Writer(WRITERS[chosen], told)


def _by_suffix(path: str) -> str | None:
    """The format that a path's name ends in; the longest of the suffixes that fit counts."""
    name = os.path.basename(path).lower()
    fits = [suffix for suffix in SUFFIXES if name.endswith(suffix) and name != suffix]
    return SUFFIXES[max(fits, key=len)] if fits else None


def _is_saved_model(path: str, like: str) -> bool:
    """Whether a path that says no format, or the name of the file in it, is to be a SavedModel, as the TARGET is."""
    if _by_suffix(path) is not None and os.path.basename(path) not in tf_paths.SAVED_MODEL:
        return False
    return bool(module("tf_saved_model").sniff(split_format(like)[1]))


def _split_out(out: str) -> tuple[str | None, str]:
    match = _FORMAT.fullmatch(out)
    if match is None:
        return None, out
    if match[1] in WRITERS or match[1] in READERS:
        return match[1], match[2]
    if _fs.isdir(os.path.dirname(out)):
        return None, out  # a colon in a folder's name, or in the file's
    return match[1], match[2]
