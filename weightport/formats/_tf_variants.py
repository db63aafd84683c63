"""Variants in a V2 checkpoint - the state of an iterator, say - which have no values, but can be carried over.

Promise: their bytes are verified, the count of elements and every checksum, and streamed.

Source: ``WriteVariantTensor`` in tensorflow/core/util/tensor_bundle/tensor_bundle.cc: of each element its size as a
varint, its bytes, and the masked checksum of all so far, in which the size counts as eight bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

from weightport.checksums import crc32c
from weightport.errors import FormatError
from weightport.formats._io import ByteFile
from weightport.formats._proto import varint
from weightport.formats._table import mask

_LONGEST_VARINT = 10


def variants(file: ByteFile, offset: int, size: int, count: int, masked: int, name: str) -> Iterator[bytes]:
    """The bytes of ``count`` variants that lie at ``offset``, as they are stored.

    Raises:
        FormatError: they are not that many, do not fill their place, or have another checksum.
    """
    file.check(offset, size, tensor=name)
    crc, at, end = 0, offset, offset + size
    for _ in range(count):
        head = file.read(at, min(_LONGEST_VARINT, end - at), tensor=name)
        length, used = varint(head, 0, len(head), file.path, at)
        if length + 4 > end - at - used:
            raise FormatError(file.path, "a variant is longer than its place", tensor=name, offset=at)
        crc = crc32c(length.to_bytes(8, "little"), crc)
        yield head[:used]
        for chunk in file.chunks(at + used, length, tensor=name):
            crc = crc32c(chunk, crc)
            yield chunk
        at += used + length
        check = mask(crc).to_bytes(4, "little")
        if file.read(at, 4, tensor=name) != check:
            raise FormatError(file.path, "a variant does not have its checksum: damaged", tensor=name, offset=at)
        crc = crc32c(check, crc)
        yield check
        at += 4
    if at != end or mask(crc) != masked:
        raise FormatError(file.path, "variants do not have their checksum: damaged", tensor=name, offset=offset)
