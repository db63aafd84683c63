"""g2p-en 2.1.0: arrays of PyTorch's GRU packing, run by numpy, into a Keras 3 encoder and decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.real import models

pytestmark = pytest.mark.real

START, END = 2, 3  # phonemes "<s>" and "</s>"; the grapheme "</s>" is 2, "<unk>" 1, "a" 3
#: Words, and what the package's own ``predict`` says of them.
WORDS = {
    "activationist": "AE2 K T IH0 V EY1 SH AH0 N IH0 S T",
    "weightport": "W EY1 T P AO2 R T",
    "checkpoint": "CH EH1 K P OY2 N T",
    "zyxwv": "Z IH1 K S V",
}
VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
CONSONANTS: tuple[str, ...] = (
    "B",
    "CH",
    "D",
    "DH",
    "F",
    "G",
    "HH",
    "JH",
    "K",
    "L",
    "M",
    "N",
    "NG",
    "P",
    "R",
    "S",
    "SH",
    "T",
    "TH",
    "UW",
)
CONSONANTS += ("V", "W", "Y", "Z", "ZH")  # "UW" stands without a stress, too
PHONEMES = ("<pad>", "<unk>", "<s>", "</s>", *sorted([*CONSONANTS, *(v + stress for v in VOWELS for stress in "012")]))


def encode(word: str) -> np.ndarray:
    """Grapheme ids ``[1, letters + 1]`` (``g2p.py`` ``encode``)."""
    return np.array([[ord(c) - ord("a") + 3 if c.isalpha() else 1 for c in word] + [2]], np.int32)


class Original:
    """The package's numpy code (``g2p.py`` ``grucell``, ``gru``, ``predict``), on the file's own arrays."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as archive:
            self.v = {name: archive[name] for name in archive.files}

    def cell(self, x: np.ndarray, h: np.ndarray, side: str) -> np.ndarray:
        rzn_ih = x @ self.v[f"{side}_w_ih"].T + self.v[f"{side}_b_ih"]
        rzn_hh = h @ self.v[f"{side}_w_hh"].T + self.v[f"{side}_b_hh"]
        r_ih, z_ih, n_ih = np.split(rzn_ih, 3, -1)
        r_hh, z_hh, n_hh = np.split(rzn_hh, 3, -1)
        r, z = 1 / (1 + np.exp(-(r_ih + r_hh))), 1 / (1 + np.exp(-(z_ih + z_hh)))
        result: np.ndarray = (1 - z) * np.tanh(n_ih + r * n_hh) + z * h
        return result

    def predict(self, word: str) -> tuple[list[int], np.ndarray]:
        """Phoneme ids without the end mark, and the logits of every step that was taken."""
        h = np.zeros((1, 256), np.float32)
        for grapheme in encode(word)[0]:
            h = self.cell(self.v["enc_emb"][[grapheme]], h, "enc")
        ids, steps, last = [], [], START
        for _ in range(20):
            h = self.cell(self.v["dec_emb"][[last]], h, "dec")
            steps.append((h @ self.v["fc_w"].T + self.v["fc_b"])[0])
            last = int(steps[-1].argmax())
            if last == END:
                break
            ids.append(last)
        return ids, np.array(steps)


@pytest.fixture(scope="module")
def original(real_model: Callable[[str], Path]) -> Original:
    return Original(real_model("g2p-en"))


@pytest.fixture(scope="module")
def moved(real_model: Callable[[str], Path], mappings: Path) -> Any:
    """The new model with the moved weights."""
    path = real_model("g2p-en")
    model = models.pronouncer()
    wp.transfer(str(path), model, str(mappings / "g2p-en.yaml"))
    return model


@pytest.mark.parametrize("word", WORDS)
def test_logits_agree(word: str, original: Original, moved: Any) -> None:
    ids, expected = original.predict(word)
    spoken = np.array([[START, *ids]], np.int32)[:, : len(expected)]
    found = np.asarray(moved([encode(word), spoken]))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("word", "expected"), list(WORDS.items()))
def test_words_are_pronounced(word: str, expected: str, moved: Any) -> None:
    ids = [START]
    while len(ids) <= 20:
        last = int(np.asarray(moved([encode(word), np.array([ids], np.int32)]))[0, -1].argmax())
        if last == END:
            break
        ids.append(last)
    assert " ".join(PHONEMES[n] for n in ids[1:]) == expected
