"""Where a file of PyTorch's keeps its pickles and its storages: a zip archive, or one pickle after the other.

Promise: only the directory, the pickles and (before 1.6) the sizes of the storages are read; a storage that is not
there, or is shorter than its tensors need, is an error that names the tensor. Limit: as
:mod:`~weightport.formats.torch_file` says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from weightport.errors import FormatError
from weightport.formats import _pickle, _torch_export, _torch_tensors
from weightport.formats._io import ByteFile
from weightport.formats._pickle import Global, Pairs
from weightport.formats._torch_names import ScriptClass
from weightport.formats._torch_script import ScriptClasses
from weightport.formats._torch_tensors import Storage
from weightport.formats._zipmember import Deflated, Stored, directory, member_of, metadata_of
from weightport.tensors import Budget

#: What the format before 1.6 begins with, and its only version.
MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
#: The members that an archive is known by: of ``torch.save`` and ``torch.jit.save``, of ``torch.export.save``.
INDICES = ("data.pkl", "archive_format")
# The first piece of a file to look for its pickles in; doubled while they go on.
_WINDOW = 1 << 20
_STEPS = 64  # instructions of a pickle for each tensor that the budget allows, and some to begin with


def _steps(budget: Budget) -> int:
    return _STEPS * budget.tensors + (1 << 16)


class Archive:
    """A zip archive.

    Attributes:
        roots: the objects in it, and the role of their tensors where it is not told by their place.
        script: what its code says of its classes; None if it is no TorchScript.
        big_endian: the byte order of its storages.
    """

    def __init__(self, file: ByteFile, budget: Budget) -> None:
        self._file, self._budget = file, budget
        infos, comment = directory(file)
        budget.check("tensors", len(infos), file.path)
        self.metadata = metadata_of(comment)
        self._infos = {info.filename: info for info in infos}
        if len(self._infos) != len(infos):
            raise FormatError(file.path, "two members of the archive have the same name")
        outside = next((n for n in self._infos if n.startswith("/") or ".." in n.split("/")), None)
        if outside is not None:
            raise FormatError(file.path, f"the archive's member {outside!r} would lie outside of it")
        self._prefix = infos[0].filename.partition("/")[0] + "/" if infos else ""
        self._members: dict[str, Stored | Deflated] = {}
        index = next((self._infos[self._prefix + name] for name in INDICES if self._has(name)), None)
        if index is None:
            raise FormatError(file.path, "is no archive of PyTorch: it has no data.pkl")
        self._agreed()
        self._checksums = index.CRC != 0  # torch.serialization.set_crc32_options(False)
        order = self._text("byteorder") if self._has("byteorder") else b"little"
        if order not in (b"little", b"big"):
            raise FormatError(file.path, f"corrupt: the byte order {order[:20]!r}")
        self.big_endian = order == b"big"
        self.roots: list[tuple[Any, str]] = []
        self.script: Callable[[Global], ScriptClass | None] | None = None
        if not self._has("data.pkl"):
            self._exported()
            return
        self.roots.append((self._object("data.pkl", "data/"), ""))
        if self._has("constants.pkl"):
            self.script = ScriptClasses(self._code)
            constants = self._object("constants.pkl", "constants/")
            if isinstance(constants, tuple) and constants:
                held = Pairs((f"c{number}", value) for number, value in enumerate(constants))
                self.roots.append((Pairs([("CONSTANTS", held)]), "constant"))

    def _agreed(self) -> None:
        """Compare the directory's names with those in the members' own headers, but for storages, which are looked at
        when they are read: a member whose name is damaged must not be taken for one that is not there.
        """
        storages = self._prefix + "data/" if self._has("data.pkl") else None
        for name, info in self._infos.items():
            if storages is None or not name.startswith(storages):
                member_of(self._file, info, name)

    def _has(self, name: str) -> bool:
        return self._prefix + name in self._infos

    def _text(self, name: str) -> bytes:
        """A whole member, its CRC checked."""
        member = self._member(name)
        self._budget.spend("header_bytes", member.size, self._file.path)
        content = member.read(0, member.size)
        if isinstance(member, Stored):
            member.verify_read(memoryview(content), name)
        else:
            member.verify(name)
        return content

    def _member(self, name: str) -> Stored | Deflated:
        member = self._members.get(name)
        if member is None:
            info = self._infos[self._prefix + name]
            member = self._members[name] = member_of(
                self._file, info, name, checksum=self._checksums, ratio=self._budget.ratio
            )
        return member

    def _code(self, name: str) -> str | None:
        return self._text(f"code/{name}").decode("utf-8", "replace") if self._has(f"code/{name}") else None

    def _object(self, name: str, folder: str) -> Any:
        data = self._text(name)

        def persistent(key: Any) -> Any:
            found = _torch_tensors.storage_of(key)
            return replace(found, key=folder + found.key) if type(found) is Storage else found

        path, base = self._file.path, self._member(name).offset
        try:
            found, _ = _pickle.parse(
                data, 0, path, base=base, call=_torch_tensors.call, persistent=persistent, steps=_steps(self._budget)
            )
        except _pickle.Short:
            raise FormatError(path, f"corrupt: {name} ends before it is complete", offset=base + len(data)) from None
        return found

    def _exported(self) -> None:
        """The weights and the constants of the models in a torch.export archive; of several, below their names."""
        if (found := self._text("archive_format")) != b"pt2":
            raise FormatError(self._file.path, f"an archive of the format {found[:20]!r}, not of pt2")
        for kind, role in (("weights", ""), ("constants", "constant")):
            folder, end = f"data/{kind}/", f"_{kind}_config.json"
            start = len(self._prefix + folder)
            names = [n for n in self._infos if n.startswith(self._prefix + folder) and n.endswith(end)]
            for name in names:
                try:
                    found_here = Pairs(_torch_export.table(self._text(name[len(self._prefix) :]), folder))
                except _pickle.Malformed as error:
                    raise FormatError(self._file.path, f"corrupt: {name}: {error}") from None
                model = name[start:].removesuffix(end)
                self.roots.append((Pairs([(model, found_here)]) if len(names) > 1 else found_here, role))

    def check(self, storage: Storage, tensor: str) -> None:
        """Refuse a storage that is not there, or too short. Looks at the directory only."""
        info = self._infos.get(self._prefix + storage.key)
        if info is None:
            raise FormatError(self._file.path, f"the archive has no member {storage.key!r}", tensor=tensor)
        if info.file_size < storage.total:
            what = f"its storage {storage.key!r} has {info.file_size} bytes, {storage.total} are needed"
            raise FormatError(self._file.path, what, tensor=tensor, offset=info.header_offset)

    def find(self, storage: Storage, tensor: str) -> tuple[Stored | Deflated, int]:
        """The member, and where in it the storage begins."""
        del tensor
        return self._member(storage.key), storage.start


class Legacy:
    """The format before PyTorch 1.6: pickles in a row, then the storages, each after its number of elements."""

    script: Callable[[Global], ScriptClass | None] | None = None
    big_endian = False  # always written in little endian

    def __init__(self, file: ByteFile, budget: Budget) -> None:
        self._file = file
        self._steps = _steps(budget)
        self.metadata: dict[str, str] = {}
        self._stored: dict[str, Storage] = {}
        self._offsets: dict[str, int] = {}
        window = _WINDOW
        while True:
            data = file.read(0, min(window, file.size))
            budget.check("header_bytes", len(data), file.path)
            try:
                root, keys, end = self._pickles(data)
                break
            except _pickle.Short:
                if window >= file.size:
                    raise FormatError(file.path, "truncated: its pickles go on", offset=file.size) from None
                window *= 2
        self.roots = [(root, "")]
        self._locate(keys, end)

    def _pickles(self, data: bytes) -> tuple[Any, Any, int]:
        self._stored = {}
        found: list[Any] = []
        at = 0
        for number in range(5):
            value, at = _pickle.parse(
                data, at, self._file.path, call=_torch_tensors.call, persistent=self._persistent, steps=self._steps
            )
            found.append(value)
            for place, (want, what) in enumerate(((MAGIC, "magic number"), (VERSION, "version"))):
                if number == place and (type(value) is not int or value != want):
                    raise FormatError(self._file.path, f"is no file of PyTorch: another {what}", offset=0)
        return found[3], found[4], at

    def _persistent(self, key: Any) -> Any:
        found = _torch_tensors.storage_of(key)
        if type(found) is Storage:
            known = self._stored.setdefault(found.key, found)
            if known.total != found.total:
                raise _pickle.Malformed(f"a storage of {known.total} and of {found.total} bytes")
        return found

    def _locate(self, keys: Any, at: int) -> None:
        file = self._file
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise FormatError(file.path, "corrupt: the keys of its storages are no list of text", offset=at)
        for key in keys:
            storage = self._stored.get(key)
            if storage is None or key in self._offsets:
                raise FormatError(file.path, f"corrupt: the storage {key!r} is of no tensor, or there twice", offset=at)
            count = int.from_bytes(file.read(at, 8), "little")
            size = _torch_tensors.itemsize(storage.dtype)
            if count * size != storage.total:
                what = f"corrupt: the storage {key!r} has {count} elements, {storage.total // size} are needed"
                raise FormatError(file.path, what, offset=at)
            file.check(at + 8, storage.total)
            self._offsets[key] = at + 8
            at += 8 + storage.total

    def check(self, storage: Storage, tensor: str) -> None:
        """Refuse a storage that is not there."""
        if storage.key not in self._offsets:
            raise FormatError(self._file.path, f"the file has no storage {storage.key!r}", tensor=tensor)

    def find(self, storage: Storage, tensor: str) -> tuple[ByteFile, int]:
        """The file, and where in it the storage begins."""
        del tensor
        return self._file, self._offsets[storage.key] + storage.start
