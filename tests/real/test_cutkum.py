"""cutkum 2.4: the frozen graph of a Thai word segmenter (three TF1 GRU cells) into three Keras 3 GRU layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.real import models
from tests.support import need

pytestmark = pytest.mark.real

SENTENCES = (
    "สารานุกรมไทยสำหรับเยาวชนฯ",
    "การตัดคำภาษาไทยเป็นเรื่องยาก",
    "วันที่ 12 เมษายน 2560 (วันพุธ) ABC",
)
NAMES = ("encyclopedia", "difficult", "mixed")
#: What the package's own code makes of them, with its ``viterbi`` as with its ``max_prob``.
WORDS = (
    ["สารานุกรม", "ไทย", "สำหรับ", "เยาวชน", "ฯ"],
    ["การ", "ตัด", "คำ", "ภาษา", "ไทย", "เป็น", "เรื่อง", "ยาก"],
    ["วัน", "ที่", " ", "12", " ", "เมษายน", " ", "2560", " ", "(", "วัน", "พุธ", ")", " ", "ABC"],
)
LOOK_AHEAD = 2  # the graph's constant ``look_ahead``: two spaces are appended, and the labels shifted back by two

# ``char_dictionary.py``: 0 is padding, 1 unknown, then the Thai characters in this order and six classes of others.
_THAI = "กขฃคฅฆงจฉชซฌญฐฎฏฐฑฒณดตถทธนบปผฝพฟภมยรฤลฦวศษสหฬอฮฯะัาำิีึืุูเแโใไๅๆ็่้๊๋์ํ"
_OTHERS = (
    "๐๑๒๓๔๕๖๗๘๙0123456789",
    " ",
    ".",
    ":;^+-*/_=#!~%\\/'\"`?",
    "()[]<>{}",
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
)
IDS = {c: n for n, c in enumerate(_THAI, start=2)}
IDS |= {c: len(_THAI) + n for n, group in enumerate(_OTHERS, start=2) for c in group}


def encode(sentence: str) -> np.ndarray:
    """One-hot characters ``[time, 80]``, with the look-ahead appended (``tokenizer.py`` ``tokenize``)."""
    ids = [IDS.get(c, 1) for c in sentence] + [IDS[" "]] * LOOK_AHEAD
    return np.eye(80, dtype=np.float32)[ids]


def words(sentence: str, probabilities: np.ndarray) -> list[str]:
    """``util.py`` ``max_prob``: a word begins where B (1) or S (4) is the likeliest label, and at the start."""
    likeliest = probabilities[LOOK_AHEAD:].argmax(-1)
    found: list[str] = []
    for character, label in zip(sentence, likeliest, strict=True):
        if label in (1, 4) or not found:
            found.append("")
        found[-1] += character
    return found


@pytest.fixture(scope="module")
def original(real_model: Callable[[str], Path]) -> Callable[[np.ndarray], np.ndarray]:
    """The frozen graph itself, run by TensorFlow: ``[time, batch, 80]`` -> ``[time, batch, 5]``.

    The feeds are those of ``tokenizer.py`` ``_process_sentence``.
    """
    path = real_model("cutkum")
    tf = need("tensorflow").compat.v1
    definition = tf.GraphDef.FromString(path.read_bytes())
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(definition, name="")

    def run(inputs: np.ndarray) -> np.ndarray:
        feed = {
            "placeholder/inputs:0": inputs,
            "placeholder/fw_state:0": np.zeros((1, inputs.shape[1], 896), np.float32),
            "placeholder/seq_lengths:0": np.full(inputs.shape[1], len(inputs)),
            "placeholder/keep_prob:0": 1.0,
        }
        with tf.Session(graph=graph) as session:
            result: np.ndarray = session.run("probs:0", feed)
        return result

    return run


@pytest.fixture(scope="module")
def moved(real_model: Callable[[str], Path], mappings: Path) -> Any:
    """The new model with the moved weights."""
    path = real_model("cutkum")
    model = models.word_segmenter()
    wp.transfer(str(path), model, str(mappings / "cutkum.yaml"))
    return model


@pytest.mark.parametrize("sentence", SENTENCES, ids=NAMES)
def test_probabilities_agree(sentence: str, original: Callable[[np.ndarray], np.ndarray], moved: Any) -> None:
    inputs = encode(sentence)
    expected = original(inputs[:, None])[:, 0]
    found = np.asarray(moved(inputs[None]))[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.ptp(expected) > 0.2  # a segmenter that has an opinion


@pytest.mark.parametrize(("sentence", "expected"), [*zip(SENTENCES, WORDS, strict=True)], ids=NAMES)
def test_thai_is_segmented(sentence: str, expected: list[str], moved: Any) -> None:
    assert words(sentence, np.asarray(moved(encode(sentence)[None]))[0]) == expected
