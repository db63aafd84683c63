"""The demo: it runs, it agrees with what the model wrote when it was trained, and it fails where it must."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.cli.command import weightport
from tests.support import fixture, need
from weightport.demo import Demo, char_lstm, live, run
from weightport.errors import Error

SEED = fixture("a_seed_char_lstm")
STEPS = len(char_lstm.WRITTEN) - 1


def test_the_embedded_model_is_the_trained_one(tmp_path: Path) -> None:
    assert SEED.doc["vocabulary"] == char_lstm.VOCABULARY
    assert tuple(SEED.doc["greedy_continuation"].values()) == (char_lstm.PROMPT, char_lstm.WRITTEN)
    demo = Demo(str(tmp_path / "demo"))
    weights = run._weights(demo.model)
    assert set(weights) == set(SEED.variables)
    for name, value in SEED.variables.items():
        np.testing.assert_array_equal(weights[name], value, strict=True)


def test_what_is_printed() -> None:
    out = weightport("demo", "--no-live").out
    assert "cell LSTMcell: lstm.scoped-gates, input 27, units 32" in out
    assert "to: {layout: lstm.keras, scope: lstm}" in out
    assert "rules[0]: moved as constant: " in out
    assert re.search(r"\nintegrity: 14 verified \(crc32c\)\nwrote \S+keras\.npz: 5 tensors, 34\.3 kB\n", out)
    assert out.count(f"  {char_lstm.WRITTEN}\n") == 2
    assert f"greatest difference of the logits in {STEPS} steps: " in out
    assert out.endswith("The moved weights compute what the pretrained model computes.\n")


def test_the_document() -> None:
    ran = weightport("demo", "--no-live", "--json")
    found = ran.json
    assert ran.err == ""
    assert set(found) == {"agree", "prompt", "texts", "max_abs_diff", "live", "kept"}
    assert (found["agree"], found["live"], found["kept"]) == (True, None, None)
    assert found["texts"] == {"source": char_lstm.WRITTEN, "moved": char_lstm.WRITTEN}
    assert found["max_abs_diff"]["moved"] < 1e-5


def test_it_leaves_nothing_behind_but_what_is_to_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    weightport("demo", "--no-live")
    assert list(tmp_path.iterdir()) == []
    weightport("demo", "--no-live", "--keep", "kept")
    assert {f.name for f in (tmp_path / "kept").iterdir()} == {*run._FILES, run.OUT}
    assert len(weightport("inspect", "kept/keras.npz", "--json").json["tensors"]) == 5
    weightport("lint", "kept/mapping.yaml", "--source", "kept/char_lstm.ckpt")
    ran = weightport("demo", "--no-live", "--keep", "kept", code=1)
    assert ran.told == ["kept/char_lstm.ckpt.index: exists already; name another folder"]


def test_weights_in_the_wrong_place_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = Demo.moved

    def wrong(self: Demo) -> run.Run:
        with np.load(self.out) as archive:
            arrays = {name: archive[name] for name in archive.files}
        i, f, c, o = np.split(arrays["lstm/kernel"], 4, axis=1)
        np.savez(self.out, **{**arrays, "lstm/kernel": np.concatenate([f, i, c, o], axis=1)})
        return moved(self)

    monkeypatch.setattr(Demo, "moved", wrong)
    ran = weightport("demo", "--no-live", "--json", code=1)
    assert ran.json["agree"] is False
    assert ran.json["max_abs_diff"]["moved"] > 1
    assert ran.told == ["the moved weights do not compute what the pretrained model computes"]
    assert weightport("demo", "--no-live", code=1).told == ran.told


def test_a_tensorflow_that_cannot_be_imported_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Demo) -> None:
        raise ImportError("no libcudart")

    monkeypatch.setattr(Demo, "live", broken)
    monkeypatch.setattr(live, "installed", lambda: True)
    ran = weightport("demo")
    assert ran.told == ["TensorFlow cannot be imported: no libcudart; that step is left out"]
    assert weightport("demo", "--live", code=1).told == ["TensorFlow cannot be imported: no libcudart"]


def test_files_in_the_way_are_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "keras.npz").write_bytes(b"mine")
    with pytest.raises(Error, match=r"keras\.npz: exists already; name another folder"):
        Demo(str(tmp_path))
    assert {f.name for f in tmp_path.iterdir()} == {"keras.npz"}


def test_in_a_live_variable_scope() -> None:
    need("tensorflow")
    found = weightport("demo", "--live", "--json").json
    assert found["agree"] is True
    assert found["texts"]["live"] == char_lstm.WRITTEN
    assert found["max_abs_diff"]["live"] < 1e-4
    assert found["live"]["variables"] == ["dense/kernel", "dense/bias"]
    assert found["live"]["constants"] == ["lstm/bias", "lstm/kernel", "lstm/recurrent_kernel"]
    out = weightport("demo", "--live").out
    assert "constants, nothing to train: lstm/bias, lstm/kernel, lstm/recurrent_kernel\n" in out
    assert out.count(f"  {char_lstm.WRITTEN}\n") == 3
