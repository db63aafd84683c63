"""What a transfer says of the bytes that it read. Which tensors are covered: ``tests/formats/test_verified.py``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.cli.command import weightport
from tests.cli.test_report import Reader
from tests.support import fixture
from weightport.formats import detect
from weightport.formats.files import digest
from weightport.integrity import Integrity, checksum_of, integrity

SEED = fixture("a_seed_char_lstm").path("checkpoint_v2")
ALL: dict[str, Any] = {"weightport": 1, "rules": [{"from": "{x**}", "to": "{x**}"}]}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A file of a format without checksums."""
    arrays = {"a": np.arange(6, dtype="float32"), "b": np.ones(3, "float32")}
    np.savez(tmp_path / "values.npz", **arrays)
    wp.transfer(tmp_path / "values.npz", None, ALL, out=tmp_path / "plain.safetensors")
    return tmp_path / "plain.safetensors"


def by(result: wp.Result) -> dict[str, tuple[str, ...]]:
    assert result.integrity is not None
    return dict(result.integrity.by)


def test_without_a_checksum(plain: Path, tmp_path: Path) -> None:
    result = wp.transfer(plain, None, ALL, out=tmp_path / "o.npz")
    assert by(result) == {"a": (), "b": ()}
    assert str(result.integrity) == "integrity: 2 unverified (no checksum)"
    assert result.as_json()["integrity"]["a"] == {"status": "unverified", "by": []}


def test_a_pin_verifies_the_whole_file(plain: Path, tmp_path: Path) -> None:
    out, pinned = tmp_path / "o.npz", {**ALL, "source": {"sha256": digest(plain)}}
    assert by(wp.transfer(plain, None, ALL, out=out, expect_sha256=digest(plain))) == {
        "a": ("sha256",),
        "b": ("sha256",),
    }
    assert by(wp.transfer(plain, None, pinned, out=out)) == {"a": ("sha256",), "b": ("sha256",)}
    lock = wp.lock(plain, ALL, path=tmp_path / "m.lock")
    result = wp.transfer(plain, None, ALL, out=out, locked=lock)
    assert str(result.integrity) == "integrity: 2 verified (sha256)"


def test_each_source_has_its_own(plain: Path, tmp_path: Path) -> None:
    rules = {
        "weightport": 1,
        "sources": {"more": {}},
        "rules": [{"from": "more/a", "to": "a"}, {"from": "softmax_b", "to": "b"}],
        "ignore": ["**"],
    }
    result = wp.transfer(SEED, None, rules, sources={"more": plain}, out=tmp_path / "o.npz", dry_run=True)
    assert by(result) == {"more/a": (), "softmax_b": ("crc32c",)}
    assert str(result.integrity) == "integrity: 1 to be verified (crc32c), 1 unverified (no checksum)"
    result = wp.transfer(SEED, None, rules, sources={"more": plain}, out=tmp_path / "o.npz", expect_sha256=digest(SEED))
    assert by(result) == {"more/a": (), "softmax_b": ("crc32c", "sha256")}
    rules["sources"] = {"more": {"sha256": digest(plain)}}
    result = wp.transfer(SEED, None, rules, sources={"more": plain}, out=tmp_path / "o.npz")
    assert by(result) == {"more/a": ("sha256",), "softmax_b": ("crc32c",)}


def test_what_was_linked_was_not_read(tmp_path: Path) -> None:
    """The checksums go along, and who reads the new checkpoint compares them; this transfer did not."""
    rules = {"weightport": 1, "rules": [{"from": "{x**}", "to": "new/{x**}"}]}
    copied = wp.transfer(SEED, None, rules, out=tmp_path / "copy.ckpt")
    source = tmp_path / "copy.ckpt"
    linked = wp.transfer(source, None, rules, out=tmp_path / "link.ckpt", link=True)
    assert set(by(linked).values()) == {()}
    pinned = wp.transfer(source, None, rules, out=tmp_path / "link.ckpt", link=True, expect_sha256=digest(source))
    assert set(by(pinned).values()) == {("sha256",)}
    assert set(by(copied).values()) <= {("crc32c",), ()}  # where the file system has clones, it was not read either


def test_an_average_is_as_its_own_tensor(tmp_path: Path) -> None:
    found = fixture("d_checkpoints/train_state_adam_ema").path("checkpoint_v2")
    rules = {"weightport": 1, "source": {"prefer": "ema"}, "rules": [{"from": "{x**}", "to": "{x**}"}]}
    result = wp.transfer(found, None, rules, out=tmp_path / "o.npz")
    assert set(by(result).values()) == {("crc32c",)}


def test_a_live_model_and_a_graph_that_reads_later(plain: Path) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.ParameterDict({"a": torch.zeros(6), "b": torch.zeros(3)})
    result = wp.transfer(plain, module, ALL, expect_sha256=digest(plain))
    assert by(result) == {"a": ("sha256",), "b": ("sha256",)}
    assert str(result.integrity) == "integrity: 2 verified (sha256)"
    dry = wp.transfer(plain, module, ALL, expect_sha256=digest(plain), dry_run=True)
    assert str(dry.integrity) == "integrity: 2 to be verified (sha256)"


def test_nothing_is_read() -> None:
    assert str(Integrity({})) == "integrity: nothing is read"
    assert str(integrity((), object())) == "integrity: nothing is read"
    assert checksum_of(object(), "a") == ""


# The file is the one that was hashed ---------------------------------------------------------------------------------


def test_another_file_in_its_place_after_it_was_opened(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was opened is not what is hashed and read then: another file, of the same names and sizes."""
    other = tmp_path / "other.safetensors"
    raw = bytearray(plain.read_bytes())
    raw[-1] ^= 1
    other.write_bytes(raw)
    wanted = digest(other)
    opened = detect.open_source

    def swapped(path: Any, **options: Any) -> Any:
        source = opened(path, **options)
        shutil.copy(other, tmp_path / "copy")
        os.replace(tmp_path / "copy", plain)
        return source

    monkeypatch.setattr(detect, "open_source", swapped)
    with pytest.raises(wp.Error, match="the file changed while it was read"):
        wp.transfer(plain, None, ALL, out=tmp_path / "o.npz", expect_sha256=wanted)
    assert not (tmp_path / "o.npz").exists()


@pytest.mark.parametrize("out", ["o.npz", "o.msgpack"])
def test_a_write_after_it_was_hashed(plain: Path, tmp_path: Path, out: str) -> None:
    def write(_: Any) -> None:
        with plain.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\1")

    with pytest.raises(wp.Error, match="the file changed while it was read"):
        wp.transfer(plain, None, ALL, out=tmp_path / out, expect_sha256=digest(plain), on_plan=write)
    assert not (tmp_path / out).exists()


# Commands ------------------------------------------------------------------------------------------------------------


def test_inspect_says_which_tensors_have_one(plain: Path) -> None:
    assert {t["checksum"] for t in weightport("inspect", SEED, "--json").json["tensors"]} == {"crc32c"}
    assert all("checksum" not in t for t in weightport("inspect", plain, "--json").json["tensors"])


def test_the_digest_that_is_expected(plain: Path, tmp_path: Path) -> None:
    mapping = tmp_path / "m.yaml"
    mapping.write_text("weightport: 1\nrules: [{from: '{x**}', to: '{x**}'}]\n", encoding="utf-8")
    for model in (plain, SEED):
        found = weightport("inspect", model, "--digest", "--json").json["sha256"]
        assert found == digest(model)
        assert f"  sha256 {found}" in weightport("inspect", model, "--digest").out.splitlines()
        out = tmp_path / "o.npz"
        weightport("transfer", model, "-m", mapping, "-o", out, "--expect-sha256", found)
        assert weightport("verify", model, out, "-m", mapping, "--expect-sha256", found, "--json").json["equal"]
        ran = weightport("verify", model, out, "-m", mapping, "--expect-sha256", "0" * 64, code=1)
        assert ran.told[0].startswith(f"{model}: its SHA-256 is {found}; asked for {'0' * 64}")


def test_the_page(plain: Path, tmp_path: Path) -> None:
    mapping, out = tmp_path / "m.yaml", tmp_path / "r.html"
    mapping.write_text("weightport: 1\nrules: [{from: '{x**}', to: '{x**}'}]\n", encoding="utf-8")
    weightport("report", plain, "-m", mapping, "-o", out)
    text = Reader(out.read_text(encoding="utf-8")).text
    assert "2 tensors: 2 moved; integrity: 2 unverified (no checksum)" in text
    assert text[text.index("a", text.index("verified against")) :][:6] == [
        "a", "float32", "6", "24 bytes", "moved", "unverified",
    ]  # fmt: skip
    weightport("report", SEED, "-m", mapping, "-o", out)
    text = Reader(out.read_text(encoding="utf-8")).text
    assert text.count("crc32c") == 14


def test_the_source_that_a_name_is_of() -> None:
    """Names of further sources begin with the source's, and may have any number of parts; a pin is of one source."""

    class Two:
        def __init__(self) -> None:
            self.others = {"more": object()}

        def checksum(self, name: str) -> str:
            return "crc32c" if name.endswith("summed") else ""

    names = ["w", "a/deep/w", "more/w", "more/deep/er/w", "more/summed", "moreover/w"]
    first, further = ("w", "a/deep/w", "moreover/w"), ("more/w", "more/deep/er/w")
    found = integrity(names, Two(), pinned=[""]).by
    assert found == {**dict.fromkeys(first, ("sha256",)), **dict.fromkeys(further, ()), "more/summed": ("crc32c",)}
    found = integrity(names, Two(), pinned=["more"]).by
    both = ("crc32c", "sha256")
    assert found == {**dict.fromkeys(first, ()), **dict.fromkeys(further, ("sha256",)), "more/summed": both}
    assert set(integrity(names, Two(), read=False).by.values()) == {()}
