"""basic-pitch 0.4.0: a SavedModel of convolutions, and the fixed kernels in its graph, into a Keras 3 model."""

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

RATE, SAMPLES = 22_050, 43_844
A4, C_SHARP5, E5 = 48, 52, 55  # rows of ``note``: semitones above A0 (27.5 Hz)


def chord() -> np.ndarray:
    """A plucked A major chord with overtones and a little noise, ``[2, 43844, 1]``: now, and half a second later."""
    time = np.arange(SAMPLES) / RATE
    noise = np.random.default_rng(0).normal(0, 1e-3, (2, SAMPLES))
    sound = []
    for start in (0.1, 0.6):
        since = np.maximum(time - start, 0)
        tones = sum(
            np.sin(2 * np.pi * 27.5 * 2 ** (row / 12) * overtone * since) / overtone**1.5
            for row in (A4, C_SHARP5, E5)
            for overtone in range(1, 6)
        )
        sound.append(0.2 * tones * np.exp(-2 * since) * (time >= start))
    result: np.ndarray = (np.array(sound) + noise)[..., None].astype(np.float32)
    return result


@pytest.fixture(scope="module")
def original(real_model: Callable[[str], Path]) -> Any:
    """The SavedModel's serving function, loaded and run by TensorFlow (``inference.py`` ``Model``)."""
    path = real_model("basic-pitch")
    loaded = need("tensorflow").saved_model.load(str(path))
    return loaded, loaded.signatures["serving_default"]


@pytest.fixture(scope="module")
def moved(real_model: Callable[[str], Path], mappings: Path) -> Any:
    """The new model with the moved weights."""
    path = real_model("basic-pitch")
    model = models.transcriber()
    wp.transfer(str(path), model, str(mappings / "basic-pitch.yaml"))
    return model


def test_outputs_agree(original: Any, moved: Any) -> None:
    sound = chord()
    expected = original[1](input_2=need("tensorflow").constant(sound))
    found = moved(sound)
    assert sorted(found) == sorted(expected) == ["contour", "note", "onset"]
    for name in expected:
        np.testing.assert_allclose(np.asarray(found[name]), expected[name].numpy(), rtol=0, atol=1e-5, err_msg=name)


def test_the_chord_is_heard(moved: Any) -> None:
    note = np.asarray(moved(chord())["note"])[0]
    frames = note[20:80]  # 0.23 s to 0.93 s
    assert {int(row) for row in np.flatnonzero(frames.mean(0) > 0.5)} == {A4, C_SHARP5, E5}
