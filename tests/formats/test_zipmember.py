"""Members of zip archives: what their heads and the directory say is compared, before and while they are read."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hostile import malformed_archives
from weightport.errors import FormatError
from weightport.formats._io import CHUNK, ByteFile
from weightport.formats._zipmember import Deflated, Stored, directory, member_of, metadata_of

CONTENT = bytes(range(256)) * 3


def archive(path: Path, content: bytes = CONTENT, *, deflated: bool = False, name: str = "m") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as made:
        made.writestr(name, content)
    return path


@contextmanager
def member(path: Path, **options: bool) -> Iterator[Stored | Deflated]:
    with ByteFile(path) as file:
        (info,), _ = directory(file)
        yield member_of(file, info, "t", **options)


def patched(path: Path, at: int, new: bytes) -> None:
    """The archive with other bytes; counted from the record in the directory where ``at`` is negative."""
    raw = bytearray(path.read_bytes())
    if at < 0:
        at = raw.rindex(b"PK\1\2") - at
    raw[at : at + len(new)] = new
    path.write_bytes(raw)


def refused(path: Path, act: Callable[[Stored | Deflated], object] = lambda _: None) -> str:
    with pytest.raises(FormatError) as caught, member(path) as found:
        act(found)
    return str(caught.value).removeprefix(str(path))


@pytest.mark.parametrize("deflated", [False, True])
def test_any_range(tmp_path: Path, deflated: bool) -> None:
    with member(archive(tmp_path / "a", deflated=deflated)) as found:
        assert type(found) is (Deflated if deflated else Stored)
        assert (found.size, found.checksum, found.path) == (768, "crc32", str(tmp_path / "a"))
        for offset, count in ((0, 768), (0, 1), (700, 68), (3, 5), (768, 0), (8, 100), (5, 0)):
            assert found.read(offset, count) == CONTENT[offset : offset + count]
            buffer = bytearray(count)
            found.read_into(offset, memoryview(buffer))
            assert buffer == CONTENT[offset : offset + count]
        found.verify("t")
        found.verify("t")
    with member(tmp_path / "a", checksum=False) as found:
        assert found.checksum == ""
        found.verify("t")


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize(("offset", "count", "needed"), [(0, 769, 769), (768, 1, 769), (-1, 1, 0), (1, -1, 0)])
def test_ranges_that_are_not_there(tmp_path: Path, deflated: bool, offset: int, count: int, needed: int) -> None:
    archive(tmp_path / "a", deflated=deflated)
    assert refused(tmp_path / "a", lambda m: m.check(offset, count, tensor="t")) == (
        f": tensor 't' at byte 31: truncated or corrupt: the member has 768 bytes, {needed} are needed"
    )


@pytest.mark.parametrize("deflated", [False, True])
def test_errors_name_the_tensor_that_is_read(tmp_path: Path, deflated: bool) -> None:
    archive(tmp_path / "a", deflated=deflated)
    expected = ": tensor 'w' at byte 31: truncated or corrupt: the member has 768 bytes, 769 are needed"
    assert refused(tmp_path / "a", lambda m: m.read(0, 769, tensor="w")) == expected
    assert refused(tmp_path / "a", lambda m: m.read_into(0, memoryview(bytearray(769)), tensor="w")) == expected
    if not deflated:
        assert refused(tmp_path / "a", lambda m: list(m.chunks(1, 768, tensor="w"))) == expected


def test_stored_members_in_pieces_and_in_place(tmp_path: Path) -> None:
    content = CONTENT * 1000
    with member(archive(tmp_path / "a", content)) as found:
        assert isinstance(found, Stored)
        pieces = list(found.chunks(7, len(content) - 9))
        assert (b"".join(pieces), max(map(len, pieces))) == (content[7:-2], CHUNK)
        extent = found.extent()
        assert (extent.path, extent.offset, extent.nbytes) == (str(tmp_path / "a"), 31, len(content))
        assert extent.checksum is not None
        assert (extent.checksum.kind, extent.checksum.value) == ("crc32", zlib.crc32(content))
        assert (extent.checksum.offset, extent.checksum.size) == (31, len(content))
        found.verify_read(memoryview(content), "t")
        assert found.extent().checksum is None
        found.verify_read(memoryview(b"nobody looks any more"), "t")
        found.close()
        assert found.read(0, 3) == b"\0\1\2"  # the archive stays open


@pytest.mark.parametrize("deflated", [False, True])
def test_a_crc_that_is_another(tmp_path: Path, deflated: bool) -> None:
    patched(archive(tmp_path / "a", deflated=deflated), -16, b"\1\2\3\4")
    patched(tmp_path / "a", 14, b"\1\2\3\4")
    expected = f": tensor 't' at byte 31: corrupt: the member's CRC is {zlib.crc32(CONTENT):08x}, 04030201 is stored"
    for _ in range(2):
        assert refused(tmp_path / "a", lambda m: m.verify("t")) == expected
    if not deflated:
        assert refused(tmp_path / "a", lambda m: m.verify_read(memoryview(CONTENT), "t")) == expected


def test_reading_on_and_going_back(tmp_path: Path) -> None:
    """A deflated member is decompressed once where it is read front to back, in whatever pieces."""
    content = b"".join(struct.pack("<Q", at * at) for at in range(200_000))
    with member(archive(tmp_path / "a", content, deflated=True)) as found:
        streams = []
        stream = found._stream
        found._stream = lambda tensor: (streams.append(tensor), stream(tensor))[1]
        at = 0
        for count in (1, CHUNK, CHUNK - 1, 3, 2 * CHUNK):
            assert found.read(at, count, tensor="w") == content[at : at + count]
            at += count
        assert found.read(at + 100, 8) == content[at + 100 : at + 108]
        assert streams == ["w"]
        assert found.read(at, 8, tensor="v") == content[at : at + 8]
        assert streams == ["w", "v"]


def deflate(raw: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(raw) + packer.flush()


def wrapped(path: Path, packed: bytes, size: int) -> Path:
    """An archive of one deflated member that says that it has ``size`` bytes."""
    head = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, 0, len(packed), size, 1, 0)
    record = b"PK\1\2" + struct.pack("<H", 20) + head + struct.pack("<HHHII", 0, 0, 0, 0, 0) + b"m"
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(record), 31 + len(packed), 0)
    path.write_bytes(b"PK\3\4" + head + b"m" + packed + record + end)
    return path


@pytest.mark.parametrize(
    ("packed", "size", "message"),
    [
        (deflate(b"12345"), 4, ": tensor 't': the member is longer than it says"),
        (deflate(b"12345"), 6, ": tensor 't' at byte 31: truncated: the member has 5 bytes of 6"),
        (deflate(b"x" * 1000)[:-1], 1000, ": tensor 't' at byte 31: truncated: the member has 1000 bytes of 1000"),
        (b"\xff\xff\xff", 5, ": tensor 't' at byte 31: corrupt: the member does not decompress"),
        (deflate(b"x" * (CHUNK + 9)), CHUNK + 8, ": tensor 't': the member is longer than it says"),
    ],
    ids=["longer", "shorter", "without its end", "no deflate", "longer than a piece"],
)
def test_what_does_not_decompress_to_what_it_says(tmp_path: Path, packed: bytes, size: int, message: str) -> None:
    wrapped(tmp_path / "a", packed, size)
    assert refused(tmp_path / "a", lambda m: m.verify("t")) == message
    assert refused(tmp_path / "a", lambda m: m.verify("t")) == message
    with member(tmp_path / "a") as found:
        with pytest.raises(FormatError) as caught:
            found.read(0, size, tensor="t"), next(found._cursor)
        assert str(caught.value).removeprefix(str(tmp_path / "a")) == message


def test_what_could_not_be_read_is_not_there_when_it_is_tried_again(tmp_path: Path) -> None:
    with member(wrapped(tmp_path / "a", deflate(CONTENT * 1000)[:-100], 768_000)) as found:
        assert found.read(0, 700, tensor="t") == CONTENT[:700]
        for _ in range(2):
            with pytest.raises(FormatError) as caught:
                found.read(767_000, 1000, tensor="t")
            assert ": tensor 't' at byte 31: truncated: the member has " in str(caught.value)
        assert found.read(0, 700, tensor="t") == CONTENT[:700]


def test_the_last_bytes_of_a_stream_may_stand_for_much(tmp_path: Path) -> None:
    """What fits no more in a piece comes in the next one; a piece that is only a block's end gives nothing."""
    for more in (0, 1, 21, 200, 258, 259, CHUNK + 30):
        content = b"x" * (CHUNK + more)
        with member(wrapped(tmp_path / "a", deflate(content), len(content))) as found:
            assert found.read(0, len(content)) == content
        wrapped(tmp_path / "a", deflate(content), len(content) - 1)
        assert refused(tmp_path / "a", lambda m: m.verify("t")) == ": tensor 't': the member is longer than it says"
    blocks = [bytes([at]) * 26_209 for at in range(10)]
    packed = b"".join(b"\0" + struct.pack("<HH", len(b), len(b) ^ 0xFFFF) + b for b in blocks)
    assert len(packed) == CHUNK - 4
    packed += b"\0\0\0\xff\xff" + b"\1\0\0\xff\xff"
    with member(wrapped(tmp_path / "a", packed, 262_090)) as found:
        assert found.read(0, 262_090) == b"".join(blocks)


def test_what_follows_the_stream_is_not_looked_at(tmp_path: Path) -> None:
    with member(wrapped(tmp_path / "a", deflate(b"12345") + b"more", 5)) as found:
        assert found.read(0, 5) == b"12345"


OTHER = " at byte 0: corrupt: the member's own header says another method, size or CRC than the directory"


@pytest.mark.parametrize("deflated", [False, True])
def test_sizes_that_are_not_known_when_the_header_is_written(tmp_path: Path, deflated: bool) -> None:
    """They stand behind the member (bit 3), or where there is more room."""
    path = archive(tmp_path / "a", deflated=deflated)
    patched(path, 14, bytes(12))
    assert refused(path) == f": tensor 't'{OTHER}"
    patched(path, 6, b"\x08")
    with member(path) as found:
        assert found.read(0, 3) == CONTENT[:3]
    patched(path, 6, b"\0")
    patched(path, 18, b"\xff" * 8)
    with member(path) as found:
        assert found.read(0, 3) == CONTENT[:3]


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (-8, b"\1", " at byte 0: the member is encrypted"),
        (0, b"X", " at byte 0: corrupt: no member begins here"),
        (30, b"n", " at byte 0: corrupt: the member is 'n' in its own header"),
        (-20, b"\x00\x04", None),  # more bytes than there are before the directory
        (-24, b"\x01\x03", " at byte 31: corrupt: a stored member of two sizes"),
        (-10, b"\x0c", " at byte 0: the compression method 12 is not supported, only stored and deflated members"),
        (-42, b"\2\0\0\0", None),  # it begins later, and so would end later
        (-16, b"\1", OTHER),
        (8, b"\x08", OTHER),
        (14, b"\1", OTHER),
        (18, b"\1", OTHER),
        (22, b"\1", OTHER),
    ],
)
def test_heads_that_do_not_agree(tmp_path: Path, at: int, new: bytes, message: str | None) -> None:
    patched(archive(tmp_path / "a"), at, new)
    found = refused(tmp_path / "a")
    if message is None:
        begin = 2 if at == -42 else 0
        assert found == f": tensor 'm' at byte {begin}: corrupt: the member shares bytes with what follows it"
    else:
        assert found == f": tensor 't'{message}"


def test_names_in_both_encodings(tmp_path: Path) -> None:
    path = archive(tmp_path / "a", name="é")
    with member(path) as found:
        assert found.read(0, 2) == b"\0\1"
    patched(path, 30, b"\xff")  # no UTF-8
    assert refused(path) == ": tensor 't' at byte 0: corrupt: the member is '' in its own header"
    patched(path, 30, b"\x82x")
    patched(path, -46, b"\x82x")
    patched(path, 7, b"\0")
    patched(path, -9, b"\0")
    with member(path) as found:  # CP437
        assert found.read(0, 2) == b"\0\1"


@pytest.mark.parametrize(("size", "fits"), [((3 + 16) * 1032, True), ((3 + 16) * 1032 + 1, False)])
def test_more_than_deflate_can_reach(tmp_path: Path, size: int, fits: bool) -> None:
    wrapped(tmp_path / "a", b"abc", size)
    if fits:
        with member(tmp_path / "a") as found:
            assert found.size == size
    else:
        message = f": tensor 't' at byte 31: 3 bytes cannot decompress to {size}"
        assert refused(tmp_path / "a") == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\3\4", " at byte 4: truncated or corrupt: File is not a zip file"),
        (b"PK\3", " at byte 3: is no archive: File is not a zip file"),
        (b"hello", " at byte 5: is no archive: File is not a zip file"),
        (b"", " at byte 0: is no archive: File is not a zip file"),
    ],
)
def test_no_archive(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(FormatError) as caught, ByteFile(tmp_path / "a") as file:
        directory(file)
    assert str(caught.value).removeprefix(str(tmp_path / "a")) == message


def test_the_number_of_members_is_compared(tmp_path: Path) -> None:
    path = archive(tmp_path / "a")
    with zipfile.ZipFile(path, "a") as made:
        made.comment = b"comment"
    with ByteFile(path) as file:
        infos, comment = directory(file)
        assert ([info.filename for info in infos], comment) == (["m"], b"comment")
    raw = path.read_bytes()
    path.write_bytes(raw[:-19] + b"\2\1" + raw[-17:])
    with pytest.raises(FormatError) as caught, ByteFile(path) as file:
        directory(file)
    what = "the archive's directory has 1 members, its end says 258"
    assert str(caught.value) == f"{path} at byte {len(raw)}: {what}"
    path.write_bytes(raw[:-19] + b"\xff\xff" + raw[-17:])  # more than it can say
    with ByteFile(path) as file:
        assert len(directory(file)[0]) == 1


def test_members_that_share_bytes(tmp_path: Path) -> None:
    """A member that is listed twice, one that reaches into the next, one that reaches into the directory."""
    path = tmp_path / "a"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("one", b"1" * 100)
        made.writestr("two", b"2" * 100)
    raw = path.read_bytes()
    first = raw.index(b"PK\1\2")
    second = raw.index(b"PK\1\2", first + 1)
    start = struct.unpack_from("<I", raw, second + 42)[0]
    for at, value, name, where in (
        (second + 42, 0, "one", 0), (first + 20, 200, "one", 0), (second + 20, 101, "two", start),
    ):  # fmt: skip
        path.write_bytes(raw[:at] + struct.pack("<I", value) + raw[at + 4 :])
        with pytest.raises(FormatError) as caught, ByteFile(path) as file:
            directory(file)
        what = "corrupt: the member shares bytes with what follows it"
        assert str(caught.value) in {f"{path}: tensor {n!r} at byte {where}: {what}" for n in (name, "two")}
    path.write_bytes(b"a program that unpacks it" + raw)
    with ByteFile(path) as file:
        assert [info.filename for info in directory(file)[0]] == ["one", "two"]


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        (b'{"a": "b", "n": 1}', {"a": "b"}),
        (b'{"a": "\xc3\xa9"}', {"a": "é"}),
        (b"", {}),
        (b"anybody's", {}),
        (b'["a"]', {}),
        (b"{no JSON", {}),
        (b'{"a": "\xff"}', {}),
        (b'{"a":' + b"[" * 60_000, {}),
    ],
)
def test_metadata_in_the_comment(comment: bytes, expected: dict[str, str]) -> None:
    assert metadata_of(comment) == expected


def test_a_directory_that_is_elsewhere(tmp_path: Path) -> None:
    """To zipfile, what stands before an archive is no part of it: places are counted from where the directory is."""
    path = archive(tmp_path / "a")
    size = path.stat().st_size
    patched(path, size - 6, (1 << 20).to_bytes(4, "little"))
    with ByteFile(path) as file, pytest.raises(FormatError) as caught:
        directory(file)
    what = "corrupt: the archive's directory is not where its end says"
    assert str(caught.value) == f"{path} at byte {size}: {what}"


def test_what_follows_an_archive(tmp_path: Path) -> None:
    """The end is looked for; what it says of the number of members is not where it should be, and not compared."""
    path = tmp_path / "a"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"1234")
    path.write_bytes(path.read_bytes() + b"and more")
    with ByteFile(path) as file:
        assert [info.filename for info in directory(file)[0]] == ["x"]


def test_the_count_of_members_in_a_large_archive(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(malformed_archives.wide()())
    with ByteFile(path) as file:
        assert len(directory(file)[0]) == 1
    path.write_bytes(malformed_archives.wide(count=3)())
    with ByteFile(path) as file, pytest.raises(FormatError) as caught:
        directory(file)
    what = "the archive's directory has 1 members, its end says 3"
    assert str(caught.value) == f"{path} at byte {path.stat().st_size}: {what}"
