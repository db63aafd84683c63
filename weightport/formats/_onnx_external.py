"""The files beside an ONNX model that hold its tensors' bytes.

Promise: only regular files beneath the model's own folder are opened, whatever a model names: no absolute path, no
``..``, no link that leads out; an offset and a length are checked against the file. Where the model has a checksum, it
is verified before the first value is used. Limit: the checksum is of a whole file, which is read for it once.

Source: onnx/onnx.proto (``external_data``: location, offset, length, checksum), onnx/external_data_helper.py.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from weightport.errors import FormatError
from weightport.formats import _fs, _inside
from weightport.formats._io import ByteFile

_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)
_SHA1 = re.compile(r"[0-9A-Fa-f]{40}", re.ASCII)


@dataclass(frozen=True, slots=True)
class External:
    """Where in another file a tensor's values lie.

    Attributes:
        location: the file, relative to the model's folder, as the model says it.
        checksum: the SHA-1 of the file in hexadecimal, or empty.
    """

    location: str
    offset: int
    size: int
    checksum: str

    @classmethod
    def of(cls, entries: Mapping[str, str], size: int, path: str, title: str) -> External:
        """From the entries of a tensor whose values take ``size`` bytes."""
        location = entries.get("location", "")
        if not location:
            raise FormatError(path, "its values lie in another file, which is not named", tensor=title)
        numbers = {}
        for key, default in (("offset", 0), ("length", size)):
            text = entries.get(key, str(default)).strip()
            if not _NUMBER.fullmatch(text):
                raise FormatError(path, f"the {key} of its external data is {text[:40]!r}", tensor=title)
            numbers[key] = int(text)
        if numbers["length"] != size:
            what = f"{numbers['length']} bytes of external data for values of {size}"
            raise FormatError(path, what, tensor=title)
        return cls(location, numbers["offset"], size, entries.get("checksum", "").strip())


class ExternalFiles:
    """The files beside one model, opened when a value is first read from them.

    Args:
        path: the model.
        check: called before the first of them is opened.
    """

    def __init__(self, path: str, check: Callable[[], None]) -> None:
        self._path, self._check = path, check
        self._open: dict[str, ByteFile] = {}
        self._verified: dict[tuple[str, str], bool] = {}

    def open(self, external: External, title: str) -> tuple[ByteFile, int]:
        """The file of a tensor, and where the tensor begins in it.

        Raises:
            FormatError: the file is missing, is not beneath the model's folder, is too short, or is not the one that
                the checksum is of.
        """
        file = self._open.get(external.location)
        if file is None:
            if not self._open:
                self._check()
            file = self._open[external.location] = ByteFile(self.resolve(external.location, title))
        file.check(external.offset, external.size, tensor=title)
        if external.checksum:
            self._verify(file, external, title)
        return file, external.offset

    def resolve(self, location: str, title: str) -> str:
        """The path of a location.

        Raises:
            FormatError: it is not beneath the model's folder.
        """
        parts = location.replace("\\", "/").split("/")
        if location.startswith(("/", "\\")) or ".." in parts or "\0" in location or ":" in parts[0][1:2]:
            raise FormatError(self._path, f"its external data {location[:200]!r} leads out of the folder", tensor=title)
        # A model that is a link itself, as in the caches of model hubs, has two folders: the link's, and its own.
        folders = [os.path.dirname(_fs.abspath(self._path)), os.path.dirname(_fs.realpath(self._path))]
        roots = _inside.folders_of(self._path)
        found = [real for f in folders if _fs.exists(real := _fs.realpath(os.path.join(f, location)))]
        inside = [real for real in found if _inside.is_inside(real, roots)]
        if inside:
            return inside[0]
        if found:
            what = f"its external data {location[:200]!r} is a link that leads out of the folder"
            raise FormatError(self._path, what, tensor=title, hint="copy the file there")
        what = f"its external data {location[:200]!r} is not there"
        raise FormatError(self._path, what, tensor=title, hint="it belongs beside the model")

    def beside(self, location: str, title: str) -> str:
        """The path of a location as a user knows it: beside the model, if it is found from there."""
        real = self.resolve(location, title)
        path = os.path.join(os.path.dirname(self._path), location)
        return path if _fs.exists(path) else real

    def _verify(self, file: ByteFile, external: External, title: str) -> None:
        """Compare a checksum once. Of the file, as the format says; of the tensor alone, as it may have been read."""
        wanted = external.checksum.lower()
        if not _SHA1.fullmatch(wanted):
            raise FormatError(self._path, f"the checksum {wanted[:50]!r} is no SHA-1", tensor=title)
        key = (external.location, wanted)
        if key not in self._verified:
            self._verified[key] = _sha1(file, 0, file.size, title) == wanted
        if not self._verified[key] and _sha1(file, external.offset, external.size, title) != wanted:
            what = f"the SHA-1 of its external data {external.location!r} is not the one that the model has"
            raise FormatError(self._path, what, tensor=title, hint="this is another file, or a damaged one")

    def close(self) -> None:
        """Release the files."""
        for file in self._open.values():
            file.close()
        self._open.clear()


def _sha1(file: ByteFile, offset: int, size: int, title: str) -> str:
    found = hashlib.sha1(usedforsecurity=False)
    for piece in file.chunks(offset, size, tensor=title):
        found.update(piece)
    return found.hexdigest()
