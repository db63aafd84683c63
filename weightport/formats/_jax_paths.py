"""Which checkpoint of Flax or Orbax a path means: a file, a checkpoint's folder, a folder with one for each step.

Promise: told by content; of several steps it is the latest that was finished; what is unclear, such as several items of
one checkpoint, is an error that lists them. Limit: nothing is opened but the first bytes of a file.

Sources: flax/training/checkpoints.py (``checkpoint_STEP``, ``latest_checkpoint``), orbax/checkpoint/_src/path/step.py
(``NameFormat``), orbax/checkpoint/_src/path/{temporary_paths,format_utils}.py, orbax/checkpoint/_src/handlers/
pytree_checkpoint_handler.py (``_METADATA``), orbax/checkpoint/_src/metadata/checkpoint.py (``_CHECKPOINT_METADATA``).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from weightport.errors import FormatError
from weightport.formats import _fs
from weightport.formats._msgpack import is_map

METADATA = "_METADATA"
CHECKPOINT_METADATA = "_CHECKPOINT_METADATA"
MANIFEST = "manifest.ocdbt"
#: Older versions of Orbax keep the tree in a file of msgpack.
AGGREGATE = "checkpoint"
_STEP = re.compile(r"(?P<stem>(?:.*?[_-])?)(?P<step>\d+)", re.DOTALL)
_TEMPORARY = re.compile(r".*\.orbax-checkpoint-tmp(?:-\d+)?|tmp.*")
_LISTED = 10


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint.

    Attributes:
        kind: ``orbax`` or ``flax-msgpack``.
        path: its folder, or its file.
    """

    kind: str
    path: str


def is_checkpoint(folder: str) -> bool:
    """Whether a folder is one tree of Orbax, itself."""
    if _fs.isfile(os.path.join(folder, METADATA)) or _fs.isfile(os.path.join(folder, MANIFEST)):
        return True
    # Before _METADATA: arrays of zarr, and maybe a tree in msgpack beside them.
    return any(_fs.isfile(os.path.join(folder, n, head)) for n in _names(folder) for head in (".zarray", "zarr.json"))


def find(folder: str) -> Found | None:
    """The checkpoint in a folder, or None if there is none of JAX.

    Raises:
        FormatError: several, and nothing says which; or only unfinished ones.
    """
    if not _fs.isdir(folder):
        return None
    if is_checkpoint(folder):
        return Found("orbax", _fs.normpath(folder))
    if _fs.isfile(os.path.join(folder, CHECKPOINT_METADATA)) or _items(folder):
        return _item(folder)
    steps = _steps(folder)
    if not steps:
        return None
    stems = sorted({stem for stem, _, _ in steps})
    if len(stems) > 1:
        listed = ", ".join(repr(os.path.basename(path)) for _, _, path in sorted(steps)[:_LISTED])
        raise FormatError(folder, f"several checkpoints, of {len(stems)} kinds: {listed}", hint="name one of them")
    _, _, path = max(steps, key=lambda found: found[1])
    return find(path) if _fs.isdir(path) else Found("flax-msgpack", path)


def resolve(path: str) -> Found:
    """What a path means: like :func:`find`, and a file is itself.

    Raises:
        FormatError: nothing is there, or nothing of JAX.
    """
    if not _fs.isdir(path):
        return Found("flax-msgpack", path)
    found = find(path)
    if found is None:
        there = ", ".join(map(repr, _names(path)[:_LISTED])) or "nothing"
        raise FormatError(path, f"no checkpoint of Flax or Orbax in this folder; it has {there}")
    return found


def _item(folder: str) -> Found:
    """The one tree among the items of a checkpoint, such as ``default`` or ``state``."""
    items = _items(folder)
    if len(items) == 1:
        return Found("orbax", os.path.join(folder, items[0]))
    if not items:
        there = ", ".join(map(repr, _names(folder)[:_LISTED])) or "nothing"
        raise FormatError(folder, f"a checkpoint of Orbax without a tree of arrays; it has {there}")
    listed = ", ".join(repr(name) for name in items[:_LISTED])
    raise FormatError(folder, f"a checkpoint of {len(items)} trees: {listed}", hint=f"name one: {folder}/{items[0]}")


def _items(folder: str) -> list[str]:
    if _STEP.fullmatch(os.path.basename(_fs.normpath(folder))) is None and not _fs.isfile(
        os.path.join(folder, CHECKPOINT_METADATA)
    ):
        return []
    return [n for n in _names(folder) if not _TEMPORARY.fullmatch(n) and is_checkpoint(os.path.join(folder, n))]


def _steps(folder: str) -> list[tuple[str, int, str]]:
    """``(what stands before the number, number, path)`` of everything that is a checkpoint of a step."""
    found = []
    for name in _names(folder):
        match = _STEP.fullmatch(name)
        path = os.path.join(folder, name)
        if match is None or _TEMPORARY.fullmatch(name):
            continue
        if _fs.isdir(path):
            marked = _fs.isfile(os.path.join(path, CHECKPOINT_METADATA))
            inside = marked or is_checkpoint(path) or bool(_items(path))
        else:
            inside = is_map(path)
        if inside:
            found.append((match["stem"], int(match["step"]), path))
    return found


def _names(folder: str) -> list[str]:
    try:
        return sorted(_fs.listdir(folder))
    except OSError:
        return []
