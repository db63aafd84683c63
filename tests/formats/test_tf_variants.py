"""Variants are carried over with every size and every checksum verified."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import says
from weightport.checksums import crc32c
from weightport.errors import FormatError
from weightport.formats import _io
from weightport.formats._io import ByteFile
from weightport.formats._table import mask, put_varint
from weightport.formats._tf_variants import variants


def stored(*elements: bytes) -> tuple[bytes, int]:
    """As TensorFlow writes them: of each its size, its bytes, and the checksum of all before it; and that of all."""
    crc, raw = 0, b""
    for element in elements:
        crc = crc32c(len(element).to_bytes(8, "little") + element, crc)
        check = mask(crc).to_bytes(4, "little")
        raw += put_varint(len(element)) + element + check
        crc = crc32c(check, crc)
    return raw, mask(crc)


ELEMENTS = (b"first", b"", b"x" * 300)
RAW, MASKED = stored(*ELEMENTS)


def read(folder: Path, raw: bytes = RAW, count: int = 3, masked: int = MASKED, size: int | None = None) -> bytes:
    (folder / "f").write_bytes(b"before" + raw + b"behind")
    with ByteFile(folder / "f") as file:
        return b"".join(map(bytes, variants(file, 6, len(raw) if size is None else size, count, masked, "t")))


def test_they_are_streamed_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(tmp_path) == RAW
    assert read(tmp_path, b"", 0, mask(0)) == b""
    monkeypatch.setattr(_io, "CHUNK", 7)
    assert read(tmp_path) == RAW


def test_every_byte_counts(tmp_path: Path) -> None:
    for at in range(len(RAW)):
        raw = bytearray(RAW)
        raw[at] ^= 1
        with pytest.raises(FormatError, match=r": tensor 't' at byte \d+: "):
            read(tmp_path, bytes(raw))


@pytest.mark.parametrize(
    ("how", "at", "said"),
    [
        ({"raw": RAW[:-1] + b"?"}, len(RAW) + 2, "a variant does not have its checksum: damaged"),
        ({"raw": RAW.replace(b"first", b"worst")}, 12, "a variant does not have its checksum: damaged"),
        ({"raw": RAW[:9]}, 6, "a variant is longer than its place"),
        ({"raw": RAW[:-1]}, 21, "a variant is longer than its place"),
        ({"size": len(RAW) - 1}, 21, "a variant is longer than its place"),
        ({"count": 2}, 6, "variants do not have their checksum: damaged"),
        ({"masked": MASKED ^ 1}, 6, "variants do not have their checksum: damaged"),
        ({"count": 0}, 6, "variants do not have their checksum: damaged"),
        ({"raw": RAW + b"0"}, 6, "variants do not have their checksum: damaged"),
    ],
)
def test_what_is_damaged(tmp_path: Path, how: dict[str, object], at: int, said: str) -> None:
    with says(FormatError, f"{tmp_path}/f: tensor 't' at byte {at}: {said}"):
        read(tmp_path, **how)  # type: ignore[arg-type]


def test_one_that_is_missing(tmp_path: Path) -> None:
    with says(FormatError, f"{tmp_path}/f at byte {6 + len(RAW)}: malformed varint"):
        read(tmp_path, count=4)
    with pytest.raises(FormatError, match=r": tensor 't'"):
        read(tmp_path, size=10_000)
