"""The lock file: whatever decides about a result is in it, and a transfer under it takes nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import weightport as wp
from tests.cli.command import weightport
from weightport import lockfile
from weightport.formats.files import digest

HINT = "if the change is meant, look at the result and run weightport lock again"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "main.npz", w=np.arange(6, dtype="float32").reshape(3, 2))
    np.savez(tmp_path / "more.npz", b=np.ones(2, "float32"))
    np.savez(tmp_path / "new.npz", w=np.zeros((2, 2), "float32"), b=np.zeros(2, "float32"))
    (tmp_path / "old.txt").write_text("a\nb\nc\n", encoding="utf-8")
    (tmp_path / "new.txt").write_text("c\na\n", encoding="utf-8")
    (tmp_path / "m.yaml").write_text(
        "weightport: 1\nsources: {more: {path: more.npz}}\nrules:\n"
        "  - {from: w, to: w, vocab: {from: old.txt, to: new.txt}}\n  - {from: more/b, to: b}\n",
        encoding="utf-8",
    )
    return tmp_path


def transfer(folder: Path, *more: str, code: int = 0) -> list[str]:
    ran = weightport(
        "transfer", folder / "main.npz", folder / "new.npz", "-m", folder / "m.yaml", "-o", folder / "out.npz", *more,
        code=code,
    )  # fmt: skip
    return ran.err.splitlines()


def lock(folder: Path) -> Path:
    weightport("lock", folder / "main.npz", folder / "new.npz", "-m", folder / "m.yaml")
    return folder / "m.lock"


def test_what_it_holds(folder: Path) -> None:
    path = lock(folder)
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found == {
        "weightport_lock": 1,
        "weightport": wp.__version__,
        "layouts": found["layouts"],
        "mapping": {"name": "m.yaml", "sha256": wp.load_mapping(folder / "m.yaml").digest},
        "sources": {
            "": {"name": "main.npz", "sha256": digest(folder / "main.npz")},
            "more": {"name": "more.npz", "sha256": digest(folder / "more.npz")},
        },
        "target": {"name": "new.npz", "sha256": digest(folder / "new.npz")},
        "vocabularies": {"new.txt": digest(folder / "new.txt"), "old.txt": digest(folder / "old.txt")},
    }
    assert len(found["layouts"]) == 64
    assert transfer(folder, "--locked") == []
    with wp.open(str(folder / "out.npz")) as made:
        assert made.read("w").tolist() == [[4, 5], [0, 1]]
    # Comments and names of folders are not content.
    text = (folder / "m.yaml").read_text(encoding="utf-8")
    (folder / "m.yaml").write_text(f"# reviewed\n{text}", encoding="utf-8")
    assert transfer(folder, "--locked") == []


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("main.npz", "the SHA-256 of the source"),
        ("more.npz", "the SHA-256 of the source more"),
        ("new.npz", "the SHA-256 of the target"),
        ("old.txt", "the SHA-256 of the vocabulary old.txt"),
    ],
)
def test_another_file(folder: Path, name: str, what: str) -> None:
    path = lock(folder)
    before = digest(folder / name)
    data = (folder / name).read_bytes()
    if name.endswith(".npz"):
        with np.load(folder / name) as archive:
            np.savez(folder / name, **{key: archive[key] + 1 for key in archive})
    else:
        (folder / name).write_bytes(data.replace(b"b\n", b"B\n"))
    assert transfer(folder, "--locked", code=1)[0] == (
        f"weightport: {path}: {what} is {digest(folder / name)}, locked is {before}; {HINT}"
    )
    assert not (folder / "out.npz").exists()
    assert transfer(folder) == []


def test_all_differences_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lock(folder)
    (folder / "m.yaml").write_text("weightport: 1\nrules: [{from: w, to: w}]\nkeep: [b]\n", encoding="utf-8")
    monkeypatch.setattr("weightport.__version__", "9.9")
    with pytest.raises(wp.RefusedError) as error:
        wp.transfer(folder / "main.npz", None, folder / "m.yaml", out=folder / "o.npz", locked=True)
    locked, now = json.loads(path.read_text(encoding="utf-8")), wp.load_mapping(folder / "m.yaml").digest
    assert str(error.value).split("\n") == [
        f"{path}: weightport is 9.9, locked is {locked['weightport']}",
        f"{path}: the SHA-256 of the mapping is {now}, locked is {locked['mapping']['sha256']}",
        f"{path}: the SHA-256 of the source more is locked, and not used now",
        f"{path}: the SHA-256 of the target is locked, and not used now",
        f"{path}: the SHA-256 of the vocabulary new.txt is locked, and not used now",
        f"{path}: the SHA-256 of the vocabulary old.txt is locked, and not used now; {HINT}",
    ]


def test_every_flipped_bit_of_a_source_is_noticed(folder: Path) -> None:
    """Also in formats without checksums: here, every bit of a safetensors file."""
    import safetensors.numpy

    path = folder / "w.safetensors"
    safetensors.numpy.save_file({"w": np.arange(3, dtype="float32")}, path)
    rules = {"weightport": 1, "rules": [{"from": "w", "to": "w"}]}
    where = wp.lock(path, rules, path=folder / "w.lock")
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(wp.Error):
            wp.transfer(path, None, rules, out=folder / "o.npz", locked=where)
    assert not (folder / "o.npz").exists()
    path.write_bytes(good)
    wp.transfer(path, None, rules, out=folder / "o.npz", locked=where)


def test_live_models_under_the_lock(folder: Path) -> None:
    rules = {"weightport": 1, "rules": [{"from": "w", "to": "w"}]}
    where = wp.lock(folder / "main.npz", rules, path=folder / "w.lock")
    tree = {"w": np.zeros((3, 2), "float32")}
    assert wp.transfer(folder / "main.npz", tree, rules, locked=where).target["w"][2].tolist() == [4, 5]
    np.savez(folder / "main.npz", w=np.zeros((3, 2), "float32"))
    with pytest.raises(wp.RefusedError, match="the SHA-256 of the source is"):
        wp.transfer(folder / "main.npz", tree, rules, locked=where)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory; weightport lock makes one"),
        (b"{", "is no lock file: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"[" * 100_000, None),
        (b"\xff", None),
        (b"[]", "is no lock file of version 1; weightport lock makes one"),
        (b" " * (1 << 21), "larger than the 1,048,576 bytes that a lock file may have"),
    ],
)
def test_what_is_no_lock_file(folder: Path, content: bytes | None, message: str | None) -> None:
    path = folder / "other.lock"
    if content is not None:
        path.write_bytes(content)
    told = transfer(folder, "--lock", str(path), code=1)
    assert told[0].startswith(f"weightport: {path}")
    assert message is None or told[0] == f"weightport: {path}: {message}"


def test_a_lock_with_other_values(folder: Path) -> None:
    path = lock(folder)
    found = json.loads(path.read_text(encoding="utf-8"))
    for wrong in ({**found, "sources": []}, {**found, "mapping": 3}, {**found, "sources": {"": {}}}):
        lockfile.write(str(path), wrong)
        assert transfer(folder, "--locked", code=1)[0].startswith(f"weightport: {path}: is damaged: ")
    del found["target"]
    lockfile.write(str(path), found)
    assert "is no lock file of version 1" in transfer(folder, "--locked", code=1)[0]


def test_what_cannot_be_carried_out_is_not_locked(folder: Path) -> None:
    (folder / "m.yaml").write_text("weightport: 1\nrules: [{from: v, to: w}]\n", encoding="utf-8")
    ran = weightport("lock", folder / "main.npz", "-m", folder / "m.yaml", code=1)
    assert ran.err.splitlines()[0] == f"weightport: {folder}/m.yaml:2 rules[0].from: no tensor 'v' in {folder}/main.npz"
    assert not (folder / "m.lock").exists()
    rules = {"weightport": 1, "rules": [{"from": "w", "to": "w"}]}
    with pytest.raises(wp.Error, match="the mapping is no file: say where the lock is to be"):
        wp.lock(folder / "main.npz", rules)
    with pytest.raises(wp.Error, match="the mapping is no file: say where its lock is"):
        wp.transfer(folder / "main.npz", None, rules, out=folder / "o.npz", locked=True)


def test_as_json(folder: Path) -> None:
    ran = weightport("lock", folder / "main.npz", "-m", folder / "m.yaml", "-o", folder / "a.lock", "--json")
    assert ran.json["path"] == str(folder / "a.lock")
    assert ran.json["lock"]["target"] is None
