"""Transfers that change names only: the files of the source under another name, or clones, and no value is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.execute.test_files import save
from tests.plan.stub import Stub, document, numbers
from tests.support import need, says
from weightport.errors import FormatError
from weightport.execute.adopt import adopted
from weightport.formats import _tf_bundle_files, tf_bundle
from weightport.formats._io import ByteFile
from weightport.plan.model import Item
from weightport.tensors import Checksum, Extent, TensorSpec
from weightport.values import Leaf

ARRAYS = {"a/w": numbers(30, 20), "a/b": numbers(20), "s": np.array(3, np.int64)}
RENAMED = [{"from": "a/{x}", "to": "new/{x}"}, {"from": "s", "to": "step"}]


def data(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{name}.ckpt.data-*"))


def holds(path: Path) -> None:
    with tf_bundle.open_source(str(path)) as made:
        assert set(made.specs()) == {"new/w", "new/b", "step"}
        for old, new in (("a/w", "new/w"), ("a/b", "new/b"), ("s", "step")):
            assert made.read(new).tobytes() == ARRAYS[old].tobytes()


def test_a_link_shares_the_file_and_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = save(tmp_path / "m", ARRAYS), tmp_path / "o.ckpt"
    read: list[str] = []
    plain = ByteFile.read_into

    def counted(self: ByteFile, offset: int, buffer: memoryview, *, tensor: str | None = None) -> None:
        read.append(self.path)
        plain(self, offset, buffer, tensor=tensor)

    monkeypatch.setattr(ByteFile, "read_into", counted)
    told: list[int] = []
    wp.transfer(source, None, document(RENAMED), out=str(out), link=True, progress=told.append)
    assert read == []
    assert sum(told) == sum(a.nbytes for a in ARRAYS.values())
    ((mine,), (its,)) = data(tmp_path, "m"), data(tmp_path, "o")
    assert os.path.samefile(mine, its)
    holds(out)
    mine.unlink()
    holds(out)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_it_overwrites_as_every_transfer_does(tmp_path: Path) -> None:
    source, out = save(tmp_path / "m", ARRAYS), tmp_path / "o.ckpt"
    save(tmp_path / "o", {"old": numbers(9)})
    wp.transfer(source, None, document(RENAMED), out=str(out), link=True)
    holds(out)
    assert len(data(tmp_path, "o")) == 1


def test_tensorflow_reads_it(tmp_path: Path) -> None:
    tf = need("tensorflow")
    source, out = save(tmp_path / "m", ARRAYS), tmp_path / "o.ckpt"
    wp.transfer(source, None, document(RENAMED), out=str(out), link=True)
    reader = tf.train.load_checkpoint(str(out))
    np.testing.assert_array_equal(reader.get_tensor("new/w"), ARRAYS["a/w"])


LESS = [RENAMED[0]]
ONE_FILE = "the format of the new file has its values and its header in one file"
OTHER: dict[str, tuple[list[dict[str, Any]], list[str], str, str]] = {
    "changed": ([{**RENAMED[0], "cast": "float64"}, RENAMED[1]], [], "o.ckpt", "'new/b' is not stored as it is to be"),
    "left behind": (LESS, ["s"], "o.ckpt", "m.ckpt.data-00000-of-00001 has values that are left behind"),
    "another format": (
        RENAMED,
        [],
        "o.safetensors",
        "the format of the new file has its values and its header in one file",
    ),
}


@pytest.mark.parametrize("name", OTHER)
def test_what_cannot_be_linked_is_refused(name: str, tmp_path: Path) -> None:
    rules, ignore, out, reason = OTHER[name]
    source = save(tmp_path / "m", ARRAYS)
    with pytest.raises(wp.RefusedError) as caught:
        wp.transfer(source, None, document(rules, ignore=ignore), out=str(tmp_path / out), link=True)
    told = str(caught.value).replace(f"{tmp_path}{os.sep}", "")
    assert told == f"{out}: cannot be linked: {reason}; leave out --link: it is copied then"
    assert len(list(tmp_path.iterdir())) == 2


def test_two_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(source: str, target: str) -> None:
        raise OSError(18, "Invalid cross-device link", source, None, target)

    monkeypatch.setattr(os, "link", no)
    source = save(tmp_path / "m", ARRAYS)
    with pytest.raises(wp.RefusedError, match="the file system cannot do it: Invalid cross-device link"):
        wp.transfer(source, None, document(RENAMED), out=str(tmp_path / "o.ckpt"), link=True)
    assert len(list(tmp_path.iterdir())) == 2


def test_clones_are_made_where_there_are_clones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def clone(source: int, target: int) -> None:
        asked.append(target)
        os.pwrite(target, os.pread(source, 1 << 20, 0), 0)

    monkeypatch.setattr(_tf_bundle_files, "cloned", clone)
    source, out = save(tmp_path / "m", ARRAYS), tmp_path / "o.ckpt"
    wp.transfer(source, None, document(RENAMED), out=str(out))
    assert len(asked) == 1
    ((mine,), (its,)) = data(tmp_path, "m"), data(tmp_path, "o")
    assert not os.path.samefile(mine, its)
    holds(out)


def test_what_cannot_be_cloned_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(source: int, target: int) -> None:
        raise OSError(95, f"{source} {target}")

    monkeypatch.setattr(_tf_bundle_files, "cloned", no)
    source, out = save(tmp_path / "m", ARRAYS), tmp_path / "o.ckpt"
    wp.transfer(source, None, document(RENAMED), out=str(out))
    holds(out)
    assert len(list(tmp_path.iterdir())) == 5


def test_what_lies_elsewhere_is_not_linked_to(tmp_path: Path) -> None:
    fsspec = need("fsspec")
    save(tmp_path / "m", ARRAYS)
    fsspec.filesystem("memory").pipe({f"/adopt/{file.name}": file.read_bytes() for file in tmp_path.iterdir()})
    with pytest.raises(wp.RefusedError) as caught:
        wp.transfer("memory://adopt/m.ckpt", None, document(RENAMED), out=str(tmp_path / "o.ckpt"), link=True)
    reason = "memory://adopt/m.ckpt.data-00000-of-00001 lies elsewhere"
    assert str(caught.value) == f"{tmp_path}/o.ckpt: cannot be linked: {reason}; leave out --link: it is copied then"
    wp.transfer("memory://adopt/m.ckpt", None, document(RENAMED), out=str(tmp_path / "o.ckpt"))
    holds(tmp_path / "o.ckpt")


def test_a_source_that_changed(tmp_path: Path) -> None:
    source = save(tmp_path / "m", ARRAYS)
    (file,) = data(tmp_path, "m")
    with pytest.raises(FormatError, match="the file changed while it was read"):
        wp.transfer(
            source, None, document(RENAMED), out=str(tmp_path / "o.ckpt"), link=True,
            on_plan=lambda _: os.utime(file, ns=(1, 1)),
        )  # fmt: skip
    assert len(list(tmp_path.iterdir())) == 2


def test_a_broken_value_is_still_found_by_who_reads_it(tmp_path: Path) -> None:
    source, out = save(tmp_path / "m", ARRAYS), tmp_path / "o.ckpt"
    (file,) = data(tmp_path, "m")
    raw = bytearray(file.read_bytes())
    raw[100] ^= 1
    file.write_bytes(raw)
    wp.transfer(source, None, document(RENAMED), out=str(out), link=True)
    with tf_bundle.open_source(str(out)) as made, pytest.raises(FormatError, match="corrupt: the checksum"):
        made.read("new/w")


class Placed(Stub):
    """A source that says where its tensors lie."""

    def __init__(self, tensors: dict[str, Any], extents: dict[str, Extent]) -> None:
        super().__init__(tensors)
        self.extents = extents

    def extent(self, name: str) -> Extent | None:
        return self.extents.get(name)


class Taking:
    """A writer that takes everything."""

    adopts = True

    def __init__(self) -> None:
        self.took: list[tuple[str, dict[str, Any], dict[str, Extent], bool]] = []

    def adopt(self, path: str, specs: Any, extents: Any, *, link: bool, metadata: Any = None) -> str:
        assert metadata is None
        self.took.append((path, dict(specs), dict(extents), link))
        return ""


def item(name: str, spec: TensorSpec) -> tuple[int, Item]:
    return 0, Item(f"new/{name}", spec, Leaf(name, spec), False, "")


def place(file: Path, offset: int, size: int, kind: str = "crc32c", more: int = 0) -> Extent:
    return Extent(str(file), offset, size, Checksum(kind, 0, offset, size + more))


@pytest.mark.parametrize(
    ("extents", "reason"),
    [
        ([(0, 8), (8, 4)], ""),
        ([(4, 8), (0, 4)], ""),
        ([(0, 8), None], "'new/b' is not stored as it is to be"),
        ([(0, 8), (8, 4, "crc32")], "'new/b' is not stored as it is to be"),
        ([(0, 8), (8, 4, "crc32c", 4)], "the checksum of 'new/b' is over more than its values"),
        ([(0, 8), (0, 4)], "f has values that are left behind"),
        ([(0, 8), (9, 4)], ""),
        ([(0, 8), (8, 3)], "f has values that are left behind"),
    ],
)
@pytest.mark.parametrize("link", [True, False])
def test_only_files_of_which_every_byte_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extents: list[Any], reason: str, link: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").write_bytes(bytes(12))
    found = {n: place(Path("f"), *at) for n, at in zip("ab", extents, strict=True) if at is not None}
    source = Placed({"a": (2,), "b": (1,)}, found)
    items = {f"new/{n}": item(n, source.specs()[n]) for n in "ab"}
    write = Taking()
    if reason and link:
        told = f"o: cannot be linked: {reason}; leave out --link: it is copied then"
        with says(wp.RefusedError, told):
            adopted("o", write, [source], items, link=link)
    else:
        assert adopted("o", write, [source], items, link=link) == (not reason)
    assert write.took == (
        []
        if reason
        else [("o", {n: i.spec for n, (_, i) in items.items()}, {f"new/{n}": found[n] for n in "ab"}, link)]
    )


def test_a_tensor_of_which_nothing_is_known(tmp_path: Path) -> None:
    source = Placed({"a": (2,)}, {"a": Extent(str(tmp_path / "f"), 0, 8, None)})
    with says(
        wp.RefusedError,
        "o: cannot be linked: 'a' is not stored as it is to be; leave out --link: it is copied then",
    ):
        adopted("o", Taking(), [source], {"a": item("a", source.specs()["a"])}, link=True)


def test_writers_that_take_nothing() -> None:
    source = Placed({}, {})
    write = Taking()
    write.adopts = False  # type: ignore[misc]
    assert not adopted("o", write, [source], {})
    assert not adopted("o", print, [source], {})
    assert write.took == []
    with says(wp.RefusedError, "o: cannot be linked: this writer copies; leave out --link: it is copied then"):
        adopted("o", print, [source], {}, link=True)


def test_a_model_in_shards_of_a_size_is_not_linked(tmp_path: Path) -> None:
    source, out = save(tmp_path / "m", ARRAYS), tmp_path / "o.ckpt"
    with says(
        wp.RefusedError,
        f"{out}: cannot be linked: the new file is to be as another one, or in shards of a size; leave out --link: it "
        "is copied then",
    ):
        wp.transfer(source, None, document(RENAMED), out=str(out), link=True, shard_size=1 << 20)
