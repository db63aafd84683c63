"""``transfer``: every kind of output, the dry run, and everything that is refused with nothing written."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.cli.command import weightport
from tests.support import fixture
from weightport.errors import Problem
from weightport.execute import files, journal
from weightport.execute.tasks import Done, Task

SEED = fixture("a_seed_char_lstm")
SOURCE = SEED.path("checkpoint_v2")
KEYS = {"rules", "source", "target", "bytes", "problems"}
DONE = {*KEYS, "integrity"}
PROVEN = {"status": "verified", "by": ["crc32c"]}
RULE_KEYS = {"rule", "disposition", "from", "to", "as", "exact"}
MAPPING = """\
weightport: 1
description: the character LSTM
rules:
  - from: {layout: lstm.scoped-gates, scope: LSTMcell}
    to: {layout: lstm.keras, scope: lstm}
    as: constant
  - from: softmax_w
    to: dense/kernel
  - from: softmax_b
    to: dense/bias
"""
# What only the target of the tests has.
KEPT = "  - to: head/w\n    initialize: zeros\nkeep: [step]\n"


def expected() -> dict[str, np.ndarray]:
    """What the mapping makes of the source, by the model's own description."""
    v = SEED.variables
    gates = ["input_gate", "forget_gate", "memory_cell", "output_gate"]  # Keras' i, f, c, o
    return {
        "lstm/kernel": np.concatenate([v[f"LSTMcell/{g}/wx"] for g in gates], axis=1),
        "lstm/recurrent_kernel": np.concatenate([v[f"LSTMcell/{g}/wt"] for g in gates], axis=1),
        "lstm/bias": np.concatenate([v[f"LSTMcell/{g}/bi"][0] for g in gates]),
        "dense/kernel": v["softmax_w"],
        "dense/bias": v["softmax_b"],
    }


@pytest.fixture
def mapping(tmp_path: Path) -> Path:
    file = tmp_path / "mapping.yaml"
    file.write_text(MAPPING, encoding="utf-8")
    return file


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The new model: what the mapping covers, a head to be initialized and a step to be kept."""
    file = tmp_path / "target.npz"
    empty = {name: np.zeros_like(value) for name, value in expected().items()}
    np.savez(file, **empty, **{"head/w": np.ones((3, 2), np.float32), "step": np.array(7)})
    return file


def left(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def read(path: str | Path) -> dict[str, np.ndarray]:
    with wp.open(path) as source:
        return {name: source.read(name) for name in source.specs()}


# --- every kind of output ---------------------------------------------------------------------------------------------

OUTPUTS = {
    "out.npz": "npz",
    "out.safetensors": "safetensors",
    "out.h5": "keras-h5",
    "out.ckpt": "tf-checkpoint",
    "tf-checkpoint:prefix": "tf-checkpoint",
}


def at(folder: Path, out: str) -> tuple[str, Path]:
    """The argument for an output in a folder, and its path."""
    kind, colon, name = out.rpartition(":")
    return f"{kind}{colon}{folder / name}", folder / name


@pytest.mark.parametrize("out", OUTPUTS)
def test_without_a_target_the_output_is_what_the_mapping_produces(out: str, mapping: Path, tmp_path: Path) -> None:
    argument, path = at(tmp_path, out)
    ran = weightport("transfer", SOURCE, "-m", mapping, "-o", argument)
    assert ran.err == ""
    assert ran.out.splitlines()[-1] == f"wrote {path}: 5 tensors, 34.3 kB"
    found, want = read(path), expected()
    assert set(found) == set(want)
    for name, value in want.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name, strict=True)
    assert weightport("inspect", path, "--json").json["format"] == OUTPUTS[out]


@pytest.mark.parametrize("out", OUTPUTS)
def test_with_a_target_the_output_is_the_new_model_whole(out: str, mapping: Path, target: Path, tmp_path: Path) -> None:
    mapping.write_text(MAPPING + KEPT, encoding="utf-8")
    argument, path = at(tmp_path, out)
    ran = weightport("transfer", SOURCE, target, "-m", mapping, "-o", argument, "--json")
    assert ran.err == ""
    document = ran.json
    assert set(document) == DONE
    assert document["integrity"] == dict.fromkeys(SEED.variables, PROVEN)
    assert all(set(rule) >= RULE_KEYS for rule in document["rules"])
    assert document["problems"] == []
    assert set(document["source"]) == set(SEED.variables)
    assert set(document["source"].values()) == {"moved"}
    assert document["target"] == {
        "lstm/kernel": "constant", "lstm/recurrent_kernel": "constant", "lstm/bias": "constant",
        "dense/kernel": "moved", "dense/bias": "moved", "head/w": "initialized", "step": "kept",
    }  # fmt: skip
    assert document["bytes"] == sum(v.nbytes for v in expected().values()) + 24
    found = read(path)
    want = {**expected(), "head/w": np.zeros((3, 2), np.float32), "step": np.array(7)}
    assert set(found) == set(want)
    for name, value in want.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name, strict=True)


def test_the_format_can_be_said(mapping: Path, tmp_path: Path) -> None:
    weightport("transfer", SOURCE, "-m", mapping, "-o", tmp_path / "weights.bin", "--format", "npz")
    assert weightport("inspect", tmp_path / "weights.bin", "--json").json["format"] == "npz"


def test_the_text_is_the_plan_and_what_was_written(mapping: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    ran = weightport("transfer", SOURCE, "-m", mapping, "-o", out, "--threads", 2)
    assert ran.out.splitlines() == [
        *str(wp.plan(SOURCE, None, mapping)).splitlines(),
        "integrity: 14 verified (crc32c)",
        f"wrote {out}: 5 tensors, 34.3 kB",
    ]


def test_shards_of_a_size(mapping: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.ckpt"
    weightport("transfer", SOURCE, "-m", mapping, "-o", out, "--shard-size", "10kB")
    shards = [n for n in left(tmp_path) if ".data-" in n]
    assert len(shards) == 3
    assert wp.verify(SOURCE, out, mapping).equal
    ran = weightport("transfer", SOURCE, "-m", mapping, "-o", tmp_path / "o.h5", "--shard-size", "10kB", code=1)
    assert "keras-h5 is not written in shards; known: " in ran.told[0]
    ran = weightport("transfer", SOURCE, "-m", mapping, "-o", out, "--shard-size", "much", code=2)
    assert "Invalid value for '--shard-size': 'much' is no size: expected a number of bytes such as 2GB" in ran.err


def test_what_was_interrupted_is_resumed(mapping: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, other = tmp_path / "out.safetensors", tmp_path / "other.safetensors"
    monkeypatch.setattr(files, "SIZES", replace(files.SIZES, task=8000))
    weightport("transfer", SOURCE, "-m", mapping, "-o", other)
    arguments = ("transfer", SOURCE, "-m", mapping, "-o", out, "--resume", "--threads", 1)
    tasks, run = 0, journal.run

    def failing(task: Task) -> Done:
        nonlocal tasks
        tasks += 1
        if tasks == 3:
            raise OSError(28, "No space left on device")
        return run(task)

    monkeypatch.setattr(journal, "run", failing)
    ran = weightport(*arguments, code=1)
    assert ran.told == [
        "what was written is kept: run it again with --resume, and it goes on there",
        f"{out}: cannot be written: No space left on device",
        "1 problem; the destination is as it was",
    ]
    ran = weightport(*arguments)
    assert ran.told == ["goes on where an earlier run ended; what that wrote is read back first"]
    assert ran.out.splitlines()[-2:] == [
        "resumed: 11.8 kB were there and are as they were written, 22.5 kB were moved",
        f"wrote {out}: 5 tensors, 34.3 kB",
    ]
    assert out.read_bytes() == other.read_bytes()
    assert weightport(*arguments, "--json").json["resumed"] == {"found": 0, "moved": 34284, "anew": ""}
    ran = weightport("transfer", SOURCE, "-m", mapping, "-o", tmp_path / "o.h5", "--resume", code=1)
    assert "is written as one stream, which cannot be resumed" in ran.told[0]


# --- the dry run ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", [(), ("-o", "out.npz")])
def test_a_dry_run_writes_nothing(
    out: tuple[str, ...], mapping: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = left(tmp_path)
    ran = weightport("transfer", SOURCE, "-m", mapping, *out, "--dry-run")
    plan = str(wp.plan(SOURCE, None, mapping)).splitlines()
    assert ran.out.splitlines() == [*plan, "integrity: 14 to be verified (crc32c)", "dry run: nothing was written"]
    document = weightport("transfer", SOURCE, "-m", mapping, *out, "--dry-run", "--json").json
    assert document.pop("integrity") == dict.fromkeys(SEED.variables, PROVEN)
    assert document == json.loads(json.dumps(wp.plan(SOURCE, None, mapping).as_json()))
    assert left(tmp_path) == before


def test_a_dry_run_checks_the_output_too(mapping: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.docx"
    ran = weightport("transfer", SOURCE, "-m", mapping, "-o", out, "--dry-run", code=1)
    assert ran.told[0].startswith(f"{out}: the suffix says no format to write; known: ")


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(folder: Path, *arguments: object) -> tuple[list[str], dict[str, Any]]:
    """What a transfer that is refused says, and its document; nothing must have been written."""
    before = {f: f.read_bytes() for f in folder.iterdir()}
    out = folder / "out.npz"
    ran = weightport("transfer", *arguments, "-o", out, code=1)
    with_json = weightport("transfer", *arguments, "-o", out, "--json", code=1)
    assert {f: f.read_bytes() for f in folder.iterdir()} == before
    assert ran.err == with_json.err
    document = with_json.json
    assert set(document) == KEYS
    assert all(set(p) == {"where", "what", "hint"} for p in document["problems"])
    *told, verdict = ran.told
    count = len(document["problems"])
    assert verdict == f"{count} problem{'s' if count > 1 else ''}; nothing was written"
    assert told == [str(Problem(**p)) for p in document["problems"]]
    return told, document


def test_a_source_tensor_that_no_rule_claims(mapping: Path, tmp_path: Path) -> None:
    mapping.write_text(MAPPING.replace("  - from: softmax_b\n    to: dense/bias\n", ""), encoding="utf-8")
    told, document = refused(tmp_path, SOURCE, "-m", mapping)
    assert told == [
        f"{SOURCE}: source tensor 'softmax_b' (float32 [27]) is claimed by no rule; "
        "move it by a rule, or list it under ignore:"
    ]
    assert document["source"]["softmax_b"] == "unclaimed"
    assert [rule["disposition"] for rule in document["rules"]] == ["moved", "moved"]


def test_a_target_tensor_that_gets_no_value(mapping: Path, target: Path, tmp_path: Path) -> None:
    mapping.write_text(MAPPING + "keep: [step]\n", encoding="utf-8")
    told, document = refused(tmp_path, SOURCE, target, "-m", mapping)
    assert told == [
        f"{target}: target tensor 'head/w' (float32 [3, 2]) gets no value; "
        "move or initialize: it by a rule, or list it under keep:"
    ]
    assert document["target"]["head/w"] == "uncovered"


def test_a_rule_that_matches_nothing(mapping: Path, tmp_path: Path) -> None:
    mapping.write_text(MAPPING + "  - from: embedding_{n}/w\n    to: embed.{n}\n", encoding="utf-8")
    told, _ = refused(tmp_path, SOURCE, "-m", mapping)
    assert len(told) == 1
    assert told[0].startswith(f"{mapping}:11 rules[3]")
    assert f"'embedding_{{n}}/w' matches no tensor of {SOURCE}" in told[0]


TEN = """\
weightport: 1
descripton: misspelt
source: {scope: 7}
rules:
  - from: {layout: lstm.scoped-gate, scope: LSTMcell}
    to: {layout: lstm.keras, scop: lstm}
    as: konstant
  - from: softmax_w
    too: dense/kernel
  - from: softmax_b
    to: dense/bias
    cast: flaot32
  - from: "a{n"
    to: "b"
  - to: head/w
    initialize: {zeroes: {}}
ignore: [3]
weightport: 1
"""


def test_ten_mistakes_are_ten_problems_each_with_its_line(mapping: Path, tmp_path: Path) -> None:
    mapping.write_text(TEN, encoding="utf-8")
    told, document = refused(tmp_path, SOURCE, "-m", mapping)
    assert len(told) >= 10
    assert all(re.match(rf"{re.escape(str(mapping))}:\d+", line) for line in told)
    assert {int(line.removeprefix(f"{mapping}:").split()[0].rstrip(":")) for line in told} >= {2, 3, 5, 6, 7, 9, 12, 13}
    for near in ("description", "lstm.scoped-gates", "scope", "constant", "'to'", "float32", "zeros"):
        assert near in "\n".join(told), near
    assert document == {"rules": [], "source": {}, "target": {}, "bytes": 0, "problems": document["problems"]}


def test_a_source_that_is_not_there(mapping: Path, tmp_path: Path) -> None:
    told, document = refused(tmp_path, tmp_path / "nope.ckpt", "-m", mapping)
    assert told[0].startswith(f"{tmp_path / 'nope.ckpt'}: ")
    assert document["rules"] == []


def test_a_mapping_that_is_not_there(tmp_path: Path) -> None:
    told, _ = refused(tmp_path, SOURCE, "-m", tmp_path / "nope.yaml")
    assert told == [f"{tmp_path / 'nope.yaml'}: no such file"]


def test_a_source_with_another_digest(mapping: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.npz"
    np.savez(source, **SEED.variables)
    found = hashlib.sha256(source.read_bytes()).hexdigest()
    told, _ = refused(tmp_path, source, "-m", mapping, "--expect-sha256", "ab" * 32)
    assert told == [f"{source}: its SHA-256 is {found}; asked for {'ab' * 32}; this is another file, or a damaged one"]
    weightport("transfer", source, "-m", mapping, "-o", tmp_path / "o.npz", "--expect-sha256", found.upper())


@pytest.mark.parametrize("which", ["source", "target", "mapping"])
def test_what_is_read_is_never_written(which: str, mapping: Path, target: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.npz"
    np.savez(source, **SEED.variables)
    mapping.write_text(MAPPING + KEPT, encoding="utf-8")
    path = {"source": source, "target": target, "mapping": mapping}[which]
    before = path.read_bytes()
    ran = weightport("transfer", source, target, "-m", mapping, "-o", path, "--format", "npz", code=1)
    assert ran.told[0] == f"{path}: is {path} itself, which is only read; write to another path"
    assert path.read_bytes() == before


def test_a_corrupt_source_leaves_the_old_output(mapping: Path, tmp_path: Path) -> None:
    for file in Path(SEED.folder).glob("model.ckpt.*"):
        data = bytearray(file.read_bytes())
        if "data" in file.name:
            data[5000] ^= 4
        (tmp_path / file.name).write_bytes(data)
    out = tmp_path / "out.npz"
    out.write_bytes(b"the old file")
    told, document = refused(tmp_path, tmp_path / "model.ckpt", "-m", mapping)
    assert len(told) == 1
    assert ": tensor 'LSTMcell/" in told[0]
    assert [rule["disposition"] for rule in document["rules"]] == ["moved"] * 3
    assert out.read_bytes() == b"the old file"


def test_a_folder_that_is_not_there(mapping: Path, tmp_path: Path) -> None:
    out = tmp_path / "no" / "out.npz"
    ran = weightport("transfer", SOURCE, "-m", mapping, "-o", out, code=1)
    assert str(tmp_path / "no") in ran.told[0]
    assert not os.path.lexists(tmp_path / "no")


# --- the command line itself ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["-o", "o.npz"], "Missing option '-m' / '--mapping'."),
        (["-m", "m.yaml"], "Missing option '-o' / '--out': the file to write (or --dry-run)."),
        (["-m", "m", "-o", "o", "--format", "npx"], "'npx' cannot be written; closest: 'npz'"),
        (["-m", "m", "-o", "o", "--threads", "0"], "0 is not in the range x>=1."),
        (["-m", "m", "-o", "o", "--expect-sha256", "12"], "expected 64 hexadecimal digits, as sha256sum prints them"),
        (["-m", "m", "-o", "o", "--dryrun"], "--dryrun"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], told: str) -> None:
    ran = weightport("transfer", SOURCE, *arguments, code=2)
    assert ran.out == ""
    assert told in ran.err
    assert "Usage: weightport transfer [OPTIONS] SOURCE [TARGET]" in ran.err
