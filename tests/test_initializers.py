from __future__ import annotations

import hashlib
import math
import statistics
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import need
from weightport.errors import Error
from weightport.initializers import (
    ALIASES,
    ARGUMENTS,
    TRUNCATED_STDDEV,
    check_arguments,
    fans,
    initialize,
    normal_quantile,
)

F32 = np.dtype(np.float32)
RANDOM = [n for n in ARGUMENTS if n not in ("zeros", "ones", "constant", "unit_forget_bias")]


def make(name: str, shape: tuple[int, ...], dtype: Any = F32, tensor: str = "head/w", **args: Any) -> np.ndarray:
    return initialize(name, args, shape, np.dtype(dtype), tensor)


def fingerprint(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


# --- determinism ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RANDOM)
def test_a_value_depends_on_the_name_and_the_seed_and_on_nothing_else(name: str) -> None:
    first = make(name, (6, 8))
    with ThreadPoolExecutor(4) as pool:
        others = list(pool.map(lambda n: make(name, (6, 8), tensor=f"other/{n}"), range(20)))
        again = pool.submit(make, name, (6, 8)).result()
    assert first.tobytes() == again.tobytes()
    assert len({a.tobytes() for a in [first, *others]}) == 21
    assert first.tobytes() != make(name, (6, 8), seed=1).tobytes()
    assert first.tobytes() == make(name, (6, 8), seed=0).tobytes()


def test_the_stream_is_pinned() -> None:
    # PCG64's raw bits are the same on every platform and in every numpy; these figures must never change.
    assert fingerprint(make("uniform", (1000,))) == "cb4444b9c2cddb47"
    assert fingerprint(make("normal", (1000,))) == "7b851e923212de78"
    assert fingerprint(make("truncated_normal", (1000,))) == "3a56505b77628bdb"


def test_the_size_of_the_chunks_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {n: make(n, (70, 30)).tobytes() for n in RANDOM}
    monkeypatch.setattr("weightport.initializers._CHUNK", 7)
    assert {n: make(n, (70, 30)).tobytes() for n in RANDOM} == whole


def test_the_seed_and_the_name_do_not_run_together() -> None:
    assert make("uniform", (4,), tensor="1", seed=1).tobytes() != make("uniform", (4,), tensor="", seed=11).tobytes()


# --- exact values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16", "int8", "uint64", "bool", "complex64"])
def test_zeros_ones_and_constant_are_exact(dtype: str) -> None:
    resolved = np.dtype(getattr(ml_dtypes, dtype, dtype))
    for name, args, value in [("zeros", {}, 0), ("ones", {}, 1), ("constant", {"value": 1}, 1), ("constant", {}, 0)]:
        made = initialize(name, args, (2, 3), resolved, "t")
        assert made.dtype == resolved
        assert made.shape == (2, 3)
        assert (made == np.full((2, 3), value, resolved)).all()


def test_quantiles_equal_the_standard_library_s() -> None:
    p = np.concatenate([np.linspace(0.001, 0.999, 999), 10.0 ** -np.arange(4, 300, 7.0), [0.075, 0.925, 1 - 2.0**-53]])
    expected = [statistics.NormalDist().inv_cdf(float(x)) for x in p]
    np.testing.assert_allclose(normal_quantile(p), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("shape", [(5, 5), (9, 4), (4, 9), (2, 3, 4), (3, 2, 2, 20), (1, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_orthogonal_is_orthogonal(shape: tuple[int, ...], dtype: str) -> None:
    made = make("orthogonal", shape, dtype, gain=2.0)
    assert made.shape == shape
    q = made.reshape(-1, shape[-1]).astype(np.float64) / 2.0
    product = q.T @ q if q.shape[0] >= q.shape[1] else q @ q.T
    np.testing.assert_allclose(product, np.eye(len(product)), rtol=0, atol=1e-6 if dtype == "float32" else 1e-13)


def test_orthogonal_is_made_per_gate() -> None:
    made = make("orthogonal", (6, 24), "float64", gates=4)
    blocks = np.split(made, 4, axis=1)
    for block in blocks:
        np.testing.assert_allclose(block.T @ block, np.eye(6), rtol=0, atol=1e-13)
    assert len({b.tobytes() for b in blocks}) == 4
    assert make("orthogonal", (6, 24), "float64", gates=["i", "f", "g", "o"]).tobytes() == made.tobytes()


def test_unit_forget_bias_fills_the_forget_gate() -> None:
    assert make("unit_forget_bias", (8,)).tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    tf1 = make("unit_forget_bias", (1, 8), gates=["i", "g", "f", "o"], value=0.5)
    assert tf1.tolist() == [[0, 0, 0, 0, 0.5, 0.5, 0, 0]]


def test_unit_forget_bias_is_keras_s() -> None:
    keras = need("keras")
    layer = keras.layers.LSTM(3, unit_forget_bias=True)
    layer.build((None, None, 2))
    np.testing.assert_array_equal(np.asarray(layer.cell.bias), make("unit_forget_bias", (12,)))


# --- distributions ----------------------------------------------------------------------------------------------------

N = (400, 500)  # 200,000 draws with a fixed seed: the figures below are facts, not chances


@pytest.mark.parametrize(
    ("name", "args", "mean", "stddev", "limit"),
    [
        ("normal", {"mean": 3.0, "stddev": 2.0}, 3.0, 2.0, None),
        ("truncated_normal", {"mean": -1.0, "stddev": 0.5}, -1.0, 0.5 * TRUNCATED_STDDEV, 1.0),
        ("uniform", {"minval": 1.0, "maxval": 5.0}, 3.0, 4 / math.sqrt(12), 2.0),
        ("glorot_uniform", {}, 0, math.sqrt(2 / 900), math.sqrt(6 / 900)),
        ("xavier_uniform", {}, 0, math.sqrt(2 / 900), math.sqrt(6 / 900)),
        ("glorot_normal", {}, 0, math.sqrt(2 / 900), 2 * math.sqrt(2 / 900) / TRUNCATED_STDDEV),
        ("xavier_normal", {}, 0, math.sqrt(2 / 900), 2 * math.sqrt(2 / 900) / TRUNCATED_STDDEV),
        ("he_uniform", {}, 0, math.sqrt(2 / 400), math.sqrt(6 / 400)),
        ("he_normal", {}, 0, math.sqrt(2 / 400), 2 * math.sqrt(2 / 400) / TRUNCATED_STDDEV),
        ("lecun_uniform", {}, 0, math.sqrt(1 / 400), math.sqrt(3 / 400)),
        ("lecun_normal", {}, 0, math.sqrt(1 / 400), 2 * math.sqrt(1 / 400) / TRUNCATED_STDDEV),
        ("variance_scaling", {"scale": 3, "mode": "fan_out", "distribution": "uniform"}, 0, None, math.sqrt(9 / 500)),
        ("variance_scaling", {"distribution": "untruncated_normal"}, 0, math.sqrt(1 / 400), None),
        ("uniform_unit_scaling", {"factor": 1.43}, 0, 1.43 / 20, 1.43 * math.sqrt(3 / 400)),
        # four gates side by side: fan_out is 125, not 500
        ("glorot_uniform", {"gates": 4}, 0, math.sqrt(2 / 525), math.sqrt(6 / 525)),
    ],
)
def test_moments_and_limits(name: str, args: dict[str, Any], mean: float, stddev: float | None, limit: float | None):
    made = make(name, N, "float64", **args)
    deviation = made - mean
    if stddev is not None:
        assert abs(made.mean() - mean) < 0.01 * stddev
        assert abs(made.std() / stddev - 1) < 0.01
    if limit is not None:
        assert np.abs(deviation).max() <= limit
        assert np.abs(deviation).max() > limit * 0.998
    else:
        assert 4 * deviation.std() < np.abs(deviation).max() < 6 * deviation.std()


@pytest.mark.parametrize(
    ("ours", "theirs", "args"),
    [
        ("glorot_uniform", "GlorotUniform", {}),
        ("glorot_normal", "GlorotNormal", {}),
        ("he_uniform", "HeUniform", {}),
        ("he_normal", "HeNormal", {}),
        ("lecun_uniform", "LecunUniform", {}),
        ("lecun_normal", "LecunNormal", {}),
        ("truncated_normal", "TruncatedNormal", {"mean": 0.5, "stddev": 0.2}),
        ("normal", "RandomNormal", {"mean": 0.5, "stddev": 0.2}),
        ("uniform", "RandomUniform", {"minval": -2.0, "maxval": 3.0}),
        ("variance_scaling", "VarianceScaling", {"scale": 0.3, "mode": "fan_avg", "distribution": "uniform"}),
        ("variance_scaling", "VarianceScaling", {"mode": "fan_out", "distribution": "truncated_normal"}),
        ("variance_scaling", "VarianceScaling", {"mode": "fan_in", "distribution": "untruncated_normal"}),
    ],
)
@pytest.mark.parametrize("shape", [(300, 200), (3, 3, 40, 60)])
def test_the_distribution_is_keras_s(ours: str, theirs: str, args: dict[str, Any], shape: tuple[int, ...]) -> None:
    keras = need("keras")
    real = np.sort(np.asarray(getattr(keras.initializers, theirs)(**args, seed=1)(shape)).ravel())
    made = np.sort(make(ours, shape, **args).ravel())
    # Kolmogorov-Smirnov: the greatest distance between the two empirical distributions (both seeds are fixed)
    both = np.concatenate([real, made])
    distance = np.abs(np.searchsorted(real, both, "right") - np.searchsorted(made, both, "right")).max() / real.size
    assert distance < 1.95 * math.sqrt(2 / real.size)


@pytest.mark.parametrize("shape", [(), (5,), (5, 7), (3, 5, 7), (2, 3, 5, 7)])
def test_fans_are_keras_s(shape: tuple[int, ...]) -> None:
    need("keras")
    from keras.src.initializers.random_initializers import compute_fans

    assert fans(shape) == compute_fans(shape)
    if shape:
        assert fans((*shape[:-1], 4 * shape[-1]), 4) == compute_fans(shape)


@given(
    name=st.sampled_from(RANDOM),
    shape=st.lists(st.integers(0, 5), min_size=2, max_size=4).map(tuple),
    dtype=st.sampled_from(["float16", "float32", "float64", "bfloat16"]),
    tensor=st.text(st.characters(), max_size=8),
)
def test_every_shape_and_dtype_is_filled_with_finite_values(
    name: str, shape: tuple[int, ...], dtype: str, tensor: str
) -> None:
    resolved = np.dtype(getattr(ml_dtypes, dtype, dtype))
    made = initialize(name, {}, shape, resolved, tensor)
    assert made.shape == shape
    assert made.dtype == resolved
    assert made.flags.c_contiguous
    assert np.isfinite(made.astype(np.float64)).all()
    exact = initialize(name, {}, shape, np.dtype(np.float64), tensor)
    assert made.tobytes() == exact.astype(resolved).tobytes()


def test_scalars_and_vectors() -> None:
    for name in RANDOM:
        if name != "orthogonal":
            assert make(name, ()).shape == ()
            assert make(name, (3,)).shape == (3,)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "shape", "dtype", "message"),
    [
        (
            "glorot_unifrom",
            {},
            (2,),
            "float32",
            "tensor 'w': unknown initializer 'glorot_unifrom'; closest: 'glorot_uniform', 'glorot_normal'",
        ),
        ("normal", {"std": 1}, (2,), "float32", "tensor 'w': normal has no argument 'std'; closest: 'stddev'"),
        (
            "zeros",
            {"x": 1},
            (2,),
            "float32",
            "tensor 'w': zeros has no argument 'x'; zeros takes no arguments",
        ),
        ("normal", {"stddev": -1}, (2,), "float32", "tensor 'w': normal.stddev: -1 is negative"),
        ("normal", {"mean": "0"}, (2,), "float32", "tensor 'w': normal.mean: expected a finite number, found '0'"),
        (
            "constant",
            {"value": math.nan},
            (2,),
            "float32",
            "tensor 'w': constant.value: expected a finite number, found nan",
        ),
        ("constant", {"value": 1 << 70}, (2,), "float32", f"tensor 'w': constant.value: {1 << 70} is too large"),
        ("normal", {"seed": 1.5}, (2,), "float32", "tensor 'w': normal.seed: expected an integer, found 1.5"),
        ("normal", {"seed": True}, (2,), "float32", "tensor 'w': normal.seed: expected an integer, found True"),
        (
            "uniform",
            {"minval": 2, "maxval": 1},
            (2,),
            "float32",
            "tensor 'w': uniform: minval 2 is greater than maxval 1",
        ),
        (
            "variance_scaling",
            {"mode": "fan", "scale": 0},
            (2,),
            "float32",
            "tensor 'w': variance_scaling.mode: 'fan' is not one of fan_in, fan_out, fan_avg\n"
            "tensor 'w': variance_scaling.scale: 0 is not positive",
        ),
        (
            "variance_scaling",
            {"distribution": "normal"},
            (2,),
            "float32",
            "tensor 'w': variance_scaling.distribution: 'normal' is not one of "
            "truncated_normal, untruncated_normal, uniform",
        ),
        (
            "orthogonal",
            {},
            (4,),
            "float32",
            "tensor 'w': orthogonal needs at least two axes, the shape is [4]; use another initializer",
        ),
        (
            "orthogonal",
            {"gates": 4},
            (4, 6),
            "float32",
            "tensor 'w': the last axis of shape [4, 6] does not hold 4 gates of equal size",
        ),
        (
            "glorot_normal",
            {"gates": 3},
            (),
            "float32",
            "tensor 'w': the last axis of shape [] does not hold 3 gates of equal size",
        ),
        (
            "glorot_normal",
            {"gates": 0},
            (3,),
            "float32",
            "tensor 'w': glorot_normal.gates: expected a number of gates or a list of gate names, found 0",
        ),
        (
            "unit_forget_bias",
            {"gates": 4},
            (8,),
            "float32",
            "tensor 'w': unit_forget_bias.gates: expected a list of gate names, found 4",
        ),
        (
            "unit_forget_bias",
            {"gates": ["i", "g"]},
            (8,),
            "float32",
            "tensor 'w': unit_forget_bias.gates: no forget gate 'f' in ['i', 'g']",
        ),
        (
            "unit_forget_bias",
            {"gates": ["f", "f"]},
            (8,),
            "float32",
            "tensor 'w': unit_forget_bias.gates: a gate stands twice in ['f', 'f']",
        ),
        (
            "unit_forget_bias",
            {},
            (7,),
            "float32",
            "tensor 'w': the last axis of shape [7] does not hold 4 gates of equal size",
        ),
        (
            "unit_forget_bias",
            {},
            (2, 8),
            "float32",
            "tensor 'w': unit_forget_bias fills one bias vector, the shape is [2, 8]; "
            "a cell with two biases adds them: give the other one zeros",
        ),
        (
            "normal",
            {},
            (2,),
            "int32",
            "tensor 'w': normal makes floating point values, the tensor is int32; use zeros or constant",
        ),
        ("constant", {"value": 1.5}, (2,), "int32", "tensor 'w': int32 cannot hold the value 1.5"),
        ("constant", {"value": -1}, (2,), "uint8", "tensor 'w': uint8 cannot hold the value -1"),
        ("constant", {"value": 2}, (2,), "bool", "tensor 'w': bool cannot hold the value 2"),
        ("constant", {"value": 1e6}, (2,), "float16", "tensor 'w': float16 cannot hold the value 1000000.0"),
        ("zeros", {}, (2,), "object", "tensor 'w': cannot fill a tensor of dtype object"),
        ("zeros", {}, (-2,), "float32", "tensor 'w': negative dimension in shape [-2]"),
    ],
)
def test_refusals_name_the_tensor(
    name: str, args: dict[str, Any], shape: tuple[int, ...], dtype: str, message: str
) -> None:
    with pytest.raises(Error) as caught:
        initialize(name, args, shape, np.dtype(dtype), "w")
    assert str(caught.value) == message


def test_defaults_pass_their_own_check() -> None:
    for name, defaults in ARGUMENTS.items():
        assert check_arguments(name, defaults) == []


def test_other_names_lead_to_initializers_with_the_same_defaults() -> None:
    assert set(ALIASES.values()) <= set(ARGUMENTS)
    assert not set(ALIASES) & set(ARGUMENTS)
    keras = need("keras")
    for name, own in ALIASES.items():
        known = keras.initializers.get(name) if name not in ("xavier", "zero", "one") else None
        for key, value in ARGUMENTS[own].items() if known is not None else ():
            assert key == "seed" or getattr(known, key) == value
