"""Which checkpoint a path means, as people have them: a prefix, a file of it, a folder with or without a state file.

Promise: kinds are told by content; a path is never a pattern unless it is the pattern of a sharded V1 checkpoint
(``model.ckpt-?????-of-00002``); what is not there is an error that names what is. Limit: nothing is opened beyond the
first block of a table.

Sources: tensorflow/python/checkpoint/checkpoint_management.py, tensorflow/core/protobuf/checkpoint_state.proto,
tensorflow/core/util/tensor_slice_reader.cc (V1 patterns), tensorflow/core/util/tensor_bundle/naming.h.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from weightport.errors import FormatError
from weightport.formats import _fs, _inside
from weightport.formats._io import ByteFile
from weightport.formats._table import Table, has_magic
from weightport.tensors import Budget

STATE = "checkpoint"
#: What describes a SavedModel in its folder: one of these.
SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")
#: kind -> what errors call it.
KINDS = {
    "v2": "a V2 checkpoint",
    "v1": "a V1 checkpoint",
    "v1-sharded": "a sharded V1 checkpoint",
    "saved_model": "a SavedModel",
}
_SHARD = re.compile(r"(?P<stem>.*)-(?:\d{5}|\?{5})-of-(?P<count>\d{5})", re.DOTALL)
_DATA = re.compile(r"(?P<prefix>.*)\.data-\d{5}-of-\d{5}", re.DOTALL)
_STEP = re.compile(r"(?P<stem>.*?)(?P<step>\d+)", re.DOTALL)
_LINE = re.compile(r"""\s*(\w+)\s*:\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|\S+)\s*""")
_ESCAPE = re.compile(r"""\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|(.))""", re.DOTALL)
_ESCAPED = {"n": 10, "r": 13, "t": 9, "a": 7, "b": 8, "f": 12, "v": 11}
_MAX_STATE = 16 << 20
_LISTED = 10


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a path leads to.

    Attributes:
        kind: a key of :data:`KINDS`.
        prefix: without ``.index`` or shard numbers; for ``v1`` the file, for a SavedModel the folder.
        paths: the files that hold it (for ``v2``: the index; shards are known only to it). All shards of a
            ``v1-sharded`` one, whether they exist or not.
    """

    kind: str
    prefix: str
    paths: tuple[str, ...]

    @property
    def described(self) -> str:
        """The kind in words."""
        return KINDS[self.kind]


def resolve(path: str | os.PathLike[str]) -> Resolved:
    """The checkpoint, or the SavedModel, that a path means.

    Raises:
        FormatError: there is none, or several and nothing says which.
    """
    text = os.fspath(path)
    if _fs.isdir(text):
        state = os.path.join(text, STATE)
        if _fs.isfile(text + ".index") and not (text.endswith(os.sep) and _fs.isfile(state)):
            return _v2(text)  # the prefix that is only a trailing slash, or one that is a folder's name too
        return _folder(text)
    found = _exact(text)
    if found is None:
        raise _missing(text)
    return found


def is_told(folder: str) -> bool:
    """Whether a folder has what says which checkpoint, or which SavedModel, it means."""
    names = (STATE, *SAVED_MODEL)
    return _fs.isfile(folder + ".index") or any(_fs.isfile(os.path.join(folder, name)) for name in names)


def _exact(text: str) -> Resolved | None:
    """The checkpoint that a path names itself: a file of it, or its prefix."""
    folder, base = os.path.split(text)
    if _fs.isfile(text):
        if base == STATE and not has_magic(text):
            return _from_state(folder, text)
        data = _DATA.fullmatch(text)
        if data and _fs.isfile(data["prefix"] + ".index"):
            return _v2(data["prefix"])
        if base.endswith(".meta"):
            found = _exact(text.removesuffix(".meta"))
            if found is None:
                raise FormatError(text, "is a graph without its checkpoint: no tensors are stored beside it")
            return found
        kind = _table_kind(text)
        if kind == "v2":
            if not base.endswith(".index"):
                raise FormatError(
                    text, "is the index of a V2 checkpoint under another name", hint="name it PREFIX.index again"
                )
            return _v2(text.removesuffix(".index"))
        if kind == "v1":
            shard = _SHARD.fullmatch(text)
            return _sharded(shard["stem"], int(shard["count"])) if shard else Resolved("v1", text, (text,))
        if _fs.isfile(text + ".index"):
            return _v2(text)
        raise FormatError(text, "is no TensorFlow checkpoint: the magic number of its table is missing or cut off")
    if _fs.isfile(text + ".index"):
        return _v2(text)
    shard = _SHARD.fullmatch(text)
    if shard:
        stem, count = shard["stem"], int(shard["count"])
        if any(_fs.isfile(p) for p in _shards(stem, count)):
            return _sharded(stem, count)
        return None
    counts = set()
    for name in _names(folder):
        shard = _SHARD.fullmatch(name)
        if shard and shard["stem"] == base and has_magic(os.path.join(folder, name)):
            counts.add(int(shard["count"]))
    if len(counts) > 1:
        raise FormatError(text, f"sharded checkpoints of {' and of '.join(map(str, sorted(counts)))} shards are there")
    return _sharded(text, counts.pop()) if counts else None


def _v2(prefix: str) -> Resolved:
    return Resolved("v2", prefix, (prefix + ".index",))


def shards_beside(prefix: str) -> list[str]:
    """The data files of a V2 checkpoint that are there, whether its index knows them or not."""
    folder, base = os.path.split(prefix)
    return [
        os.path.join(folder, name) for name in _names(folder) if (m := _DATA.fullmatch(name)) and m["prefix"] == base
    ]


def _shards(stem: str, count: int) -> tuple[str, ...]:
    return tuple(f"{stem}-{number:05d}-of-{count:05d}" for number in range(count))


def _sharded(stem: str, count: int) -> Resolved:
    return Resolved("v1-sharded", stem, _shards(stem, count))


def _table_kind(path: str) -> str | None:
    """``v1`` or ``v2`` by what stands under the empty key, None if the file is no table."""
    if not has_magic(path):
        return None
    with ByteFile(path) as file:
        table = Table(file, Budget())
        if len(table):
            block = table.block(0)
            for key, offset, size in block.places():
                if key == b"" and size and block.data.read(offset, 1) == b"\n":
                    return "v1"  # SavedTensorSlices.meta, a message; a V2 header begins with a number
                break
    return "v2"


def _names(folder: str) -> list[str]:
    try:
        return sorted(_fs.listdir(folder or "."))
    except OSError:
        return []


def _folder(folder: str) -> Resolved:
    state = os.path.join(folder, STATE)
    if _fs.isfile(state) and not has_magic(state):
        return _from_state(folder, state)
    if any(_fs.isfile(os.path.join(folder, name)) for name in SAVED_MODEL):
        return Resolved("saved_model", folder, (folder,))
    there = _checkpoints(folder)
    if not there:
        listed = some(_names(folder))
        raise FormatError(folder, f"no checkpoint in this folder{f'; it has {listed}' if listed else ', it is empty'}")
    if len(there) == 1:
        return there[0]
    steps = []
    for found in there:
        match = _STEP.fullmatch(os.path.basename(found.prefix))
        steps.append((match["stem"], int(match["step"])) if match else (None, 0))
    if None in {stem for stem, _ in steps} or len({stem for stem, _ in steps}) > 1 or len(set(steps)) < len(steps):
        raise FormatError(
            folder,
            f"several checkpoints and no state file: {some([os.path.basename(f.prefix) for f in there])}",
            hint="name one of them",
        )
    return max(zip(steps, there, strict=True), key=lambda pair: pair[0][1])[1]


def _checkpoints(folder: str) -> list[Resolved]:
    """The checkpoints whose files stand in a folder."""
    found: dict[str, Resolved] = {}
    for name in _names(folder):
        path = os.path.join(folder, name)
        if name == STATE or not _fs.isfile(path) or not has_magic(path):
            continue
        if name.endswith(".index"):
            # Beside the files of a V1 checkpoint of the same name, the V2 one is what a Saver restores.
            found[path.removesuffix(".index")] = _v2(path.removesuffix(".index"))
            continue
        try:
            kind = _table_kind(path)
        except FormatError:
            continue
        shard = _SHARD.fullmatch(path)
        if kind == "v1" and shard:
            found.setdefault(shard["stem"], _sharded(shard["stem"], int(shard["count"])))
        elif kind == "v1":
            found.setdefault(path, Resolved("v1", path, (path,)))
    return list(found.values())


def _from_state(folder: str, state: str) -> Resolved:
    latest, listed = read_state(state)
    for candidate in _candidates(folder, latest):
        if os.path.basename(candidate) == STATE and not has_magic(candidate):
            continue  # a state file that names a state file, maybe itself
        found = _exact(candidate)
        if found is not None:
            for path in filter(os.path.lexists, found.paths):
                _inside.refuse_outside(path, _inside.folders_of(state))
            return found
    there = some([os.path.basename(found.prefix) or found.prefix for found in _checkpoints(folder)])
    raise FormatError(
        state,
        f"the latest checkpoint {latest!r} is not there",
        hint=f"in this folder: {there}; name one of them" if there else f"no checkpoint of {len(listed)} listed is",
    )


def _candidates(folder: str, entry: str) -> list[str]:
    """Where a state file's entry may stand: as it says, else beside the state file by its last part.

    The folder may have been moved after it was written, and it may have been written on another system: what is not
    beneath it is never meant, or a copy would read the original, and a stranger's folder what is not theirs.
    """
    parts = re.split(r"[/\\]", entry)
    beside = os.path.join(folder, parts[-1])
    return [beside] if os.path.isabs(entry) or ".." in parts else [os.path.join(folder, entry), beside]


def read_state(path: str) -> tuple[str, list[str]]:
    """The latest checkpoint and all that a ``checkpoint`` state file lists, as they are written there."""
    with ByteFile(path) as file:
        if file.size > _MAX_STATE:
            raise FormatError(path, f"a state file of {file.size:,} bytes, at most {_MAX_STATE:,} are read")
        text = file.read(0, file.size).decode("utf-8", "surrogateescape")
    latest, listed = None, []
    position = 0
    while position < len(text):
        if text[position] in "#\n\r\t ,;":
            end = text.find("\n", position) if text[position] == "#" else position + 1
            position = len(text) if end < 0 else end
            continue
        match = _LINE.match(text, position)
        if match is None:
            line = text.count("\n", 0, position) + 1
            raise FormatError(path, f"line {line} is no entry of a checkpoint state file", offset=position)
        key, value = match[1], match[2] if match[2] is not None else match[3]
        if value is not None and key == "model_checkpoint_path":
            latest = _unescaped(value)
        elif value is not None and key == "all_model_checkpoint_paths":
            listed.append(_unescaped(value))
        position = match.end()
    if latest is None:
        raise FormatError(path, "names no model_checkpoint_path")
    return latest, listed


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text

    def one(match: re.Match[str]) -> str:
        octal, hexadecimal, letter = match.groups()
        if letter is not None:
            return chr(_ESCAPED.get(letter, ord(letter)))
        return bytes([int(octal, 8) & 0xFF if octal else int(hexadecimal, 16)]).decode("latin-1")

    # Escapes are bytes of UTF-8; latin-1 carries them one to a character.
    raw = _ESCAPE.sub(one, text.encode("utf-8", "surrogateescape").decode("latin-1"))
    return raw.encode("latin-1").decode("utf-8", "surrogateescape")


def some(names: list[str]) -> str:
    """The first few names, quoted."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(repr(name) for name in names[:_LISTED]) + more


def _missing(text: str) -> FormatError:
    denied = _fs.denied(text) or _fs.denied(text + ".index")
    if denied is not None:
        return denied
    if not _fs.is_remote(text) and os.path.lexists(text):
        if not os.path.exists(text):
            return FormatError(text, f"is a link to {os.path.realpath(text)}, which is not there")
        return FormatError(text, "is no regular file but a pipe, a socket or a device", hint="copy it to a file first")
    folder, base = os.path.split(text)
    if not _fs.is_remote(text) and not os.path.isdir(folder or "."):
        return FormatError(text, "no such file or checkpoint, and no such folder either")
    data = [name for name in _names(folder) if (m := _DATA.fullmatch(name)) and m["prefix"] == base]
    if data:
        return FormatError(text, f"the index {base + '.index'!r} is not there, only {some(data)}")
    # What differs by a letter, or what begins alike.
    import difflib  # not needed as long as all goes well

    names = {os.path.basename(name) for name in _names(folder)[:5_000]}
    stems = {
        (m["prefix"] if (m := _DATA.fullmatch(n)) else n.removesuffix(".index").removesuffix(".meta")) for n in names
    }
    near = difflib.get_close_matches(base, sorted(stems), n=3, cutoff=0.6)
    near += [n for n in sorted(stems) if base and n.startswith(base) and n not in near][: 3 - len(near)]
    hint = f"near: {', '.join(repr(n) for n in near)}" if near else ""
    return FormatError(text, "no such file or checkpoint", hint=hint)
