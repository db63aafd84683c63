"""``.keras`` archives that Keras 3 loads, made of another one: its configuration, other values.

Promise: configuration, metadata and assets are taken over byte for byte, the weights have the structure that they have
there, values stream through, and the same input gives the same bytes; the archive appears by one rename. The optimizer
starts anew: its state is left out (Keras warns that there is none, and initializes it), unless values are given for it.
Limits: there must be an archive to take all that from, since a configuration cannot be made from names and shapes. The
weights are written twice, first into an unnamed file in the destination's folder: an archive cannot hold a file that
is still being written.

Source: keras/src/saving/saving_lib.py (``_save_model_to_fileobj``, ``_load_model_from_fileobj``), keras/src/optimizers/
base_optimizer.py (``load_own_variables``).
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping

from weightport.errors import Error, FormatError, Problem
from weightport.formats import _fs, keras_archive, keras_h5_write
from weightport.formats._io import CHUNK, ByteFile
from weightport.formats._temporaries import atomic_file
from weightport.formats._zipmember import Deflated, Stored, directory, member_of
from weightport.formats.keras_archive import CONFIG, METADATA, WEIGHTS
from weightport.tensors import TensorSpec, Tiles

_EPOCH = (1980, 1, 1, 0, 0, 0)


def write(
    path: str,
    specs: Mapping[str, TensorSpec],
    tiles: Tiles,
    *,
    metadata: Mapping[str, str] | None = None,
    like: str | None = None,
    kept: Collection[str] = (),
) -> None:
    """Write an archive.

    Args:
        path: the destination; Keras wants it to end in ``.keras``.
        specs: name -> dtype and shape; the names are those of ``like``.
        tiles: yields each tensor's consecutive tiles along axis 0.
        metadata: becomes root attributes ``weightport.KEY`` of the weights.
        like: a ``.keras`` archive, or a folder with the same files.
        kept: names that have the values they have in ``like``.

    Raises:
        Error: no such archive, names that are not its own, or values that are not as their spec says. Nothing was
            changed.
    """
    if like is None:
        what = "a .keras archive holds a model's configuration, which no mapping makes"
        raise Error(Problem(path, what, "give a .keras archive of the new model as the target, or write a .weights.h5"))
    with keras_archive.open_source(like) as model:
        places = keras_h5_write.places_in(path, specs, model, kept)
        with atomic_file(path) as out, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, size, pieces in _others(like):
                _put(archive, name, size, pieces)
            with tempfile.TemporaryFile(dir=os.path.dirname(_fs.realpath(path))) as weights:
                with keras_h5_write.written(path, weights) as file:
                    keras_h5_write.repeat(path, file, model, places, specs, tiles, metadata)
                size = weights.seek(0, os.SEEK_END)
                weights.seek(0)
                _put(archive, WEIGHTS, size, iter(lambda: weights.read(CHUNK), b""))


def _put(archive: zipfile.ZipFile, name: str, size: int, pieces: Iterable[bytes]) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.external_attr = 0o600 << 16
    info.create_system = 3
    with archive.open(info, "w", force_zip64=size >= zipfile.ZIP64_LIMIT) as member:
        for piece in pieces:
            member.write(piece)


def _others(like: str) -> Iterator[tuple[str, int, Iterable[bytes]]]:
    """Name, size and content of all but the weights."""
    if _fs.isdir(like):
        for folder, _, names in sorted(_fs.walk(like)):
            for name in sorted(names):
                place = os.path.relpath(os.path.join(folder, name), like).replace(os.sep, "/")
                if place in (CONFIG, METADATA) or place.startswith("assets/"):
                    with ByteFile(os.path.join(folder, name)) as file:
                        yield place, file.size, file.chunks(0, file.size)
        return
    with ByteFile(like) as file:
        for info in directory(file)[0]:
            if info.filename == WEIGHTS:
                continue
            parts = info.filename.replace("\\", "/").split("/")
            if info.filename.startswith("/") or ".." in parts or ":" in parts[0]:
                what = f"the member {info.filename!r} would lead out of the archive's folder: refused"
                raise FormatError(like, what, offset=info.header_offset)
            member = member_of(file, info, info.filename)
            member.verify(info.filename)
            yield info.filename, member.size, _pieces(member, info.filename)


def _pieces(member: Stored | Deflated, name: str) -> Iterator[bytes]:
    for at in range(0, member.size, CHUNK):
        yield member.read(at, min(CHUNK, member.size - at), tensor=name)
