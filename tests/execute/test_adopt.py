"""Transfers that change names only: the files of the source under another name, or clones, and no value is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.execute.test_files import save
from tests.plan.stub import document, numbers
from tests.support import need
from weightport.errors import FormatError
from weightport.formats import _tf_bundle_files, tf_bundle
from weightport.formats._io import ByteFile

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
    assert len(list(tmp_path.iterdir())) == 4


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
