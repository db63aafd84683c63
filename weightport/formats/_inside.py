"""Whether a file that belongs to a model lies where the model lies.

A stranger's folder can hold links: to follow one out of it would read what is somebody else's. Promise: links are
followed by the file system's own rules, and what they lead to has to lie beneath the folder of the file that says what
the model is, as it is named or as it really lies: in the caches of model hubs, all files of a model are links into one
folder. Limit: what a user names themselves may lie anywhere.
"""

from __future__ import annotations

import os

from weightport.errors import FormatError
from weightport.formats import _fs


def folders_of(anchor: str) -> set[str]:
    """The folders, without links, that the files of a model may lie beneath, which a file says what they are."""
    return {_fs.realpath(os.path.dirname(_fs.abspath(anchor))), os.path.dirname(_fs.realpath(anchor))}


def roots_of(folder: str, *marks: str) -> set[str]:
    """The same of a model that is a folder; ``marks`` are the names in it of the files that say what it is."""
    return {_fs.realpath(folder), *(os.path.dirname(_fs.realpath(os.path.join(folder, mark))) for mark in marks)}


def is_inside(path: str, folders: set[str]) -> bool:
    """Whether a path, its links followed, lies beneath one of these folders."""
    real = _fs.realpath(path)
    return any(_fs.is_beneath(real, folder) for folder in folders)


def refuse_outside(path: str, folders: set[str], *, tensor: str | None = None) -> str:
    """The path, which has to lie beneath one of these folders.

    Raises:
        FormatError: it is a link that leads out of them.
    """
    if not is_inside(path, folders):
        raise FormatError(
            path, "is a link that leads out of the model's folder", tensor=tensor, hint="copy the file there"
        )
    return path
