"""Values of HDF5's chunked datasets, read by position and decoded here: HDF5's filters crash on damaged parameters.

Promise: of HDF5, only the index of the chunks is asked; a chunk's bytes are read where they lie, what they inflate to
is bounded by the chunk, ``fletcher32`` is verified, and a chunk of another size is a :class:`FormatError`. A chunk that
was never written has the fill value. Memory: one chunk, those of the last part up to :data:`CACHE`, and 32 bytes for
each chunk of the dataset that was read last. Limit: deflate, shuffle and fletcher32; other filters are HDF5's
(:func:`is_known` tells).

Sources: HDF5 File Format Specification 3.0, IV.A.2.l (filter pipeline); H5Zdeflate.c, H5Zshuffle.c, H5Zfletcher32.c,
H5checksum.c (``H5_checksum_fletcher32``).
"""

from __future__ import annotations

import itertools
import zlib
from array import array
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from weightport.errors import FormatError
from weightport.formats import _strided
from weightport.formats._h5_file import each_chunk
from weightport.formats._io import Bytes
from weightport.tensors import Array

#: Decoded chunks that are kept between two reads: as much as HDF5 keeps for us elsewhere.
CACHE = 8 << 20
_DEFLATE, _SHUFFLE, _FLETCHER, _SZIP, _NBIT, _SCALE_OFFSET = 1, 2, 3, 4, 5, 6
Pipeline = list[tuple[int, tuple[int, ...]]]


def pipeline_of(plist: Any) -> Pipeline:
    """The filters of a dataset's creation properties, in the order of writing, with their parameters."""
    filters = (plist.get_filter(number) for number in range(plist.get_nfilters()))
    return [(int(code), tuple(int(v) for v in values)) for code, _, values, _ in filters]


def is_known(pipeline: Pipeline) -> bool:
    """Whether all of it is decoded here."""
    return all(code in (_DEFLATE, _SHUFFLE, _FLETCHER) for code, _ in pipeline)


def is_sound(pipeline: Pipeline, elements: int, dtype: np.dtype[Any]) -> bool:
    """Whether the parameters of the filters that HDF5 has to decode are those that it makes for such values.

    Without them, or with others, it reads where nothing is.

    Args:
        elements: of a chunk.
        dtype: of the dataset.

    Source: H5Znbit.c (``H5Z__set_parms_atomic``), H5Zscaleoffset.c (``H5Z__set_local_scaleoffset``), H5Zszip.c
    (``H5Z__set_local_szip``).
    """
    for code, values in pipeline:
        bits = 8 * dtype.itemsize
        if code == _NBIT:
            good = (
                len(values) == 8 and values[0] == 8 and values[2:5] == (elements, 1, dtype.itemsize) and values[5] < 2
            )
            good = good and 0 < values[6] <= bits and values[6] + values[7] <= bits
        elif code == _SCALE_OFFSET:
            those = elements, int(dtype.kind == "f"), dtype.itemsize
            good = len(values) == 20 and values[0] < 3 and values[2:5] == those and max(values[5:8]) < 2
        elif code == _SZIP:
            good = len(values) == 4 and 2 <= values[1] <= 32 and values[1] % 2 == 0
            good = good and 0 < values[2] <= bits and 0 < values[3] <= min(elements, 4096)
        else:
            good = True
        if not good:
            return False
    return True


class Decoder:
    """The chunked datasets of a file.

    Args:
        file: the file's bytes.
        base: where HDF5's addresses begin in it.
        compare: called before a dataset's first chunk is read; sees whether chunks share bytes.
    """

    def __init__(self, file: Bytes, base: int, compare: Callable[[], None]) -> None:
        self._file, self._base, self._compare = file, base, compare
        self._last: tuple[Any, Chunks | None] | None = None

    def read(self, handle: Any, dtype: np.dtype[Any], cuts: _strided.Bounds, tensor: str) -> Array | None:
        """The part of a dataset that those bounds cut out; None if it has no chunks, or HDF5 has to decode them.

        Args:
            handle: the ``h5py.h5d.DatasetID``.
            dtype: as stored, byte order included.

        Raises:
            FormatError: a chunk is truncated or corrupt.
        """
        if self._last is None or self._last[0] is not handle:
            self._last = handle, self._chunks(handle, dtype)  # each keeps some of its chunks: one at a time
        chunks = self._last[1]
        if chunks is None:
            return None
        out = np.empty(_strided.counts(cuts), dtype)
        chunks.read(cuts, out, tensor)
        return out

    def _chunks(self, handle: Any, dtype: np.dtype[Any]) -> Chunks | None:
        import h5py

        plist = handle.get_create_plist()
        pipeline = pipeline_of(plist)
        if plist.get_layout() != h5py.h5d.CHUNKED:
            return None
        self._compare()
        if not is_known(pipeline):
            return None
        return Chunks(self._file, self._base, handle, dtype, pipeline)


class Chunks:
    """The chunks of one dataset; arguments as :class:`Decoder`'s."""

    def __init__(self, file: Bytes, base: int, handle: Any, dtype: np.dtype[Any], pipeline: Pipeline) -> None:
        self._file, self._base, self._handle = file, base, handle
        self._dtype, self._pipeline = dtype, pipeline
        plist = handle.get_create_plist()
        self._shape = tuple(int(dim) for dim in plist.get_chunk())
        self._nbytes = prod(self._shape) * dtype.itemsize
        fill = np.zeros((), dtype)
        if dtype.kind != "V":
            plist.get_fill_value(fill)
        self._fill = fill
        self._index: _Index | None = None
        self._kept: dict[tuple[int, ...], Array] = {}

    def read(self, cuts: _strided.Bounds, out: Array, tensor: str) -> None:
        """Put the part that those bounds cut out into an array of its shape, and of the stored dtype.

        Raises:
            FormatError: a chunk is truncated or corrupt.
        """
        if len(self._shape) != len(cuts):
            raise FormatError(self._file.path, "corrupt: chunks of other axes than the values", tensor=tensor)
        axes = [range(low // size, -(-high // size)) for (low, high, _), size in zip(cuts, self._shape, strict=True)]
        for at in itertools.product(*axes):
            start = tuple(number * size for number, size in zip(at, self._shape, strict=True))
            inside, place = [], []
            for (low, high, step), first, size in zip(cuts, start, self._shape, strict=True):
                skipped = max(0, -(-(first - low) // step))  # elements of the part that lie in chunks before this one
                begin = low + skipped * step
                count = max(0, -(-(min(high, first + size) - begin) // step))
                inside.append(slice(begin - first, begin - first + count * step, step))
                place.append(slice(skipped, skipped + count))
            if all(cut.stop > cut.start for cut in place):
                out[tuple(place)] = self._chunk(start, tensor)[tuple(inside)]

    def _chunk(self, start: tuple[int, ...], tensor: str) -> Array:
        found = self._kept.pop(start, None)
        if found is None:
            if self._index is None:
                self._index = _Index(self._handle, self._shape)
            place = self._index.find(start)
            if place is None:
                return np.broadcast_to(self._fill, self._shape)
            offset, size, mask = place
            if self._base:  # whether HDF5 counts from there depends on its version
                self._file.check(0, size, tensor=tensor)
                _, data = self._handle.read_direct_chunk(start)
            else:
                data = self._file.read(offset, size, tensor=tensor)
            decoded = self._decoded(data, mask, tensor)
            found = np.frombuffer(decoded, self._dtype).reshape(self._shape)
            while self._kept and (len(self._kept) + 1) * self._nbytes > CACHE:
                del self._kept[next(iter(self._kept))]
        self._kept[start] = found
        return found

    def _decoded(self, data: bytes, mask: int, tensor: str) -> bytes:
        def corrupt(what: str) -> FormatError:
            return FormatError(self._file.path, f"truncated or corrupt: {what}", tensor=tensor)

        for number, (code, values) in reversed(list(enumerate(self._pipeline))):
            if mask >> number & 1:
                continue  # HDF5 left it out for this chunk
            if code == _DEFLATE:
                decoder = zlib.decompressobj()
                try:
                    data = decoder.decompress(data, self._nbytes + 4)  # and a checksum that was made before
                except zlib.error:
                    raise corrupt("a chunk does not decompress") from None
                if not decoder.eof:
                    raise corrupt("a chunk is longer or shorter than it should be")
            elif code == _FLETCHER:
                data, stored = data[:-4], int.from_bytes(data[-4:], "little")
                if fletcher32(data) != stored:
                    raise corrupt("the checksum of a chunk is another")
            else:
                size = values[0] if values else 0
                if not 0 < size <= self._dtype.itemsize:
                    raise corrupt(f"a chunk's bytes are shuffled by {size}")
                whole = len(data) // size * size
                mixed = np.frombuffer(data[:whole], np.uint8).reshape(size, -1)
                data = mixed.T.tobytes() + data[whole:]
        if len(data) != self._nbytes:
            raise corrupt(f"a chunk has {len(data)} bytes, {self._nbytes} are needed")
        return data


class _Index:
    """Where the chunks of a dataset lie. HDF5, asked for one of them, would go through all of them, each time.

    Args:
        handle: the ``h5py.h5d.DatasetID``.
        chunk: the shape of a chunk, of as many axes.
    """

    def __init__(self, handle: Any, chunk: tuple[int, ...]) -> None:
        self._chunk = chunk
        self._grid = tuple(-(-int(dim) // size) for dim, size in zip(handle.shape, chunk, strict=True))
        numbers, places = array("q"), array("Q")

        def add(info: Any) -> None:
            number = self._number(info.chunk_offset)
            if number >= 0:
                numbers.append(number)
                places.extend((info.byte_offset, info.size, info.filter_mask))

        each_chunk(handle, add)
        order = np.argsort(np.array(numbers), kind="stable")
        self._numbers, self._places = np.array(numbers)[order], np.array(places).reshape(-1, 3)[order]

    def find(self, start: tuple[int, ...]) -> tuple[int, int, int] | None:
        """Offset, size and filter mask of the chunk that begins there; None if it was never written."""
        number = self._number(start)
        at = int(np.searchsorted(self._numbers, number))
        if at == len(self._numbers) or self._numbers[at] != number:
            return None
        offset, size, mask = self._places[at].tolist()
        return offset, size, mask

    def _number(self, start: tuple[int, ...]) -> int:
        """The chunk's place in the order of rows; -1 if it lies beyond the values."""
        number = 0
        for first, size, count in zip(start, self._chunk, self._grid, strict=True):
            if first >= size * count:
                return -1
            number = number * count + first // size
        return number


def fletcher32(data: bytes) -> int:
    """HDF5's checksum of that name: sums modulo 65535 over big-endian words; zero is 65535 unless all are zero."""
    words = np.frombuffer(data + bytes(len(data) % 2), ">u2").astype(np.uint64)
    first = second = 0
    for at in range(0, len(words), 1 << 20):  # so that no sum overflows
        part = words[at : at + (1 << 20)]
        weights = np.arange(len(part), 0, -1, dtype=np.uint64)
        second = _folded(second + first * len(part) + int(np.dot(part, weights)))
        first = _folded(first + int(part.sum()))
    return second << 16 | first


def _folded(value: int) -> int:
    return (value - 1) % 65535 + 1 if value else 0
