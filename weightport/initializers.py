"""Initial values for the tensors that pretrained weights do not cover.

Promise: a value depends on the initializer, its arguments, the shape, the dtype and the tensor's own name, and on
nothing else: not on the order of the tensors, on threads, or on the version of numpy (only the raw bit stream of PCG64
is used, which numpy guarantees). Random values are computed in float64 and rounded once to the tensor's dtype.
Limit: ``orthogonal`` goes through LAPACK's QR, so its last float64 bit may differ between machines.

Sources: ``keras/src/initializers/random_initializers.py`` (Keras 3), ``tensorflow/python/ops/init_ops.py`` (TensorFlow
1.15), ``keras/src/layers/rnn/lstm.py`` (unit forget bias).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from weightport.errors import Error, Problem, closest
from weightport.tensors import Array

#: Draws made at once: the float64 intermediates stay in the second-level cache, whatever the tensor's size.
_CHUNK = 1 << 15

#: Standard deviation of a standard normal cut at two standard deviations; the frameworks divide by it.
TRUNCATED_STDDEV = 0.87962566103423978

_MODES = ("fan_in", "fan_out", "fan_avg")
_DISTRIBUTIONS = ("truncated_normal", "untruncated_normal", "uniform")

_FAN: dict[str, Any] = {"seed": 0, "gates": None}
#: Initializer -> argument -> default. ``gates`` is how many gates lie side by side on the last axis: an integer or the
#: list of their letters; the fan is then that of one gate, and ``orthogonal`` makes one matrix per gate.
ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    "zeros": {},
    "ones": {},
    "constant": {"value": 0.0},
    "normal": {"mean": 0.0, "stddev": 0.05, "seed": 0},
    "truncated_normal": {"mean": 0.0, "stddev": 0.05, "seed": 0},
    "uniform": {"minval": -0.05, "maxval": 0.05, "seed": 0},
    "glorot_uniform": _FAN,
    "xavier_uniform": _FAN,
    "glorot_normal": _FAN,
    "xavier_normal": _FAN,
    "he_uniform": _FAN,
    "he_normal": _FAN,
    "lecun_uniform": _FAN,
    "lecun_normal": _FAN,
    "variance_scaling": {"scale": 1.0, "mode": "fan_in", "distribution": "truncated_normal", **_FAN},
    "uniform_unit_scaling": {"factor": 1.0, "seed": 0},
    "orthogonal": {"gain": 1.0, "seed": 0, "gates": None},
    "unit_forget_bias": {"gates": ["i", "f", "g", "o"], "value": 1.0},
}

#: Other names that the frameworks have for them, with the same defaults (keras/src/initializers/__init__.py, Keras 1's
#: keras/initializations.py, tf.contrib.layers.xavier_initializer).
ALIASES: Mapping[str, str] = {
    "zero": "zeros",
    "one": "ones",
    "random_normal": "normal",
    "random_uniform": "uniform",
    "xavier": "glorot_uniform",
}

# name -> (scale, mode, distribution) of the variance scaling that it stands for
_SCALINGS = {
    "glorot_uniform": (1.0, "fan_avg", "uniform"),
    "glorot_normal": (1.0, "fan_avg", "truncated_normal"),
    "he_uniform": (2.0, "fan_in", "uniform"),
    "he_normal": (2.0, "fan_in", "truncated_normal"),
    "lecun_uniform": (1.0, "fan_in", "uniform"),
    "lecun_normal": (1.0, "fan_in", "truncated_normal"),
}


def settled(name: str, args: Any) -> tuple[str, Any]:
    """An initializer's own name and arguments for what a mapping calls it: an alias, or a constant's bare number."""
    name = ALIASES.get(name, name)
    number = isinstance(args, (int, float)) and not isinstance(args, bool)
    return name, {"value": args} if name == "constant" and number else args


def check_arguments(name: str, args: Mapping[str, Any]) -> list[tuple[str, str]]:
    """All that is wrong with an initializer's name and arguments, as (what, hint) pairs; empty if nothing is.

    A mapping is checked with this before any tensor is looked at; :func:`initialize` refuses the same things.
    """
    known = ARGUMENTS.get(name)
    if known is None:
        return [(f"unknown initializer {name!r}", _nearest(name))]
    if not isinstance(args, Mapping):
        takes = ", ".join(f"{key}: {value}" for key, value in known.items() if value is not None)
        return [
            (
                f"{name}: expected arguments by name, found {args!r}",
                f"{name}: {{{takes}}}" if takes else "it takes none",
            )
        ]
    problems: list[tuple[str, str]] = []
    for key, value in args.items():
        if key not in known:
            takes = f"{name} takes {', '.join(known) or 'no arguments'}"
            problems.append((f"{name} has no argument {key!r}", closest(key, known) or takes))
        elif wrong := _wrong_argument(name, key, value):
            problems.append((f"{name}.{key}: {wrong}", ""))
    low, high = (args.get(k, known.get(k)) for k in ("minval", "maxval"))
    if name == "uniform" and not problems and low > high:
        problems.append((f"uniform: minval {low} is greater than maxval {high}", ""))
    return problems


def _nearest(name: str) -> str:
    """The hint for a name that is no initializer's: ``HeNormal`` and ``he_normal_initializer`` are ``he_normal``."""
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().removesuffix("_initializer")
    near = ALIASES.get(plain, plain)
    if near in ARGUMENTS:
        return f"closest: {near!r}"
    return closest(plain, ARGUMENTS) or f"known: {', '.join(ARGUMENTS)}"


def initialize(
    name: str,
    args: Mapping[str, Any],
    shape: Sequence[int],
    dtype: np.dtype[Any],
    tensor_name: str,
    *,
    rows: tuple[int, int] | None = None,
) -> Array:
    """The initial value of one tensor, as a new C-order array of that shape and dtype.

    Args:
        name: one of :data:`ARGUMENTS`.
        args: its arguments; what is left out has the default of :data:`ARGUMENTS`.
        shape: the tensor's shape.
        dtype: numpy's or ml_dtypes' floating dtype; integers, booleans and complex only for zeros, ones and constant.
        tensor_name: seeds the random stream together with ``seed``: every tensor has a stream of its own.
        rows: only the rows ``[start, stop)`` of the first axis; they are made alone, but for ``orthogonal``.

    Formulas (``fan_in``, ``fan_out`` as Keras computes them: matrices are ``[in, out]``, kernels of convolutions
    ``[..., in, out]`` times their receptive field; with ``gates`` the last axis counts one gate only):

    - ``variance_scaling``: ``s = scale / max(1, fan)``; uniform in ``+-sqrt(3 s)``, or normal with standard deviation
      ``sqrt(s)``; the truncated one is cut at two of them and widened by ``1 / TRUNCATED_STDDEV``.
    - ``uniform_unit_scaling``: uniform in ``+-factor * sqrt(3 / n)``, ``n`` the product of all axes but the last (TF1).
    - ``truncated_normal``: what lies beyond two standard deviations is not drawn; ``stddev`` is that before the cut.
    - ``orthogonal``: ``gain * Q`` of the QR of a normal matrix, all axes but the last flattened, signs made unique.
    - ``unit_forget_bias``: zeros, and ``value`` in the block of gate ``f``; ``gates`` is the order of the blocks on the
      last axis (default ``i f g o``, that of Keras).

    Raises:
        Error: an unknown initializer or argument, or a shape or dtype that it cannot fill; names the tensor.
    """
    where = f"tensor {tensor_name!r}"
    problems = [Problem(where, what, hint) for what, hint in check_arguments(name, args)]
    dims = tuple(int(d) for d in shape)
    if any(d < 0 for d in dims):
        problems.append(Problem(where, f"negative dimension in shape {list(dims)}"))
    if problems:
        raise Error(problems)
    full = {**ARGUMENTS[name], **args}
    dtype = np.dtype(dtype)
    start, stop = rows if rows is not None else (0, dims[0] if dims else 1)
    part = (stop - start, *dims[1:]) if dims else ()
    try:
        if name in ("zeros", "ones", "constant"):
            return _filled({"zeros": 0, "ones": 1}.get(name, full.get("value", 0)), part, dtype)
        if not _is_float(dtype):
            raise _UnfitError(
                f"{name} makes floating point values, the tensor is {dtype.name}", "use zeros or constant"
            )
        if name == "unit_forget_bias":
            return _unit_forget_bias(full, dims, dtype)[start:stop]
        if name == "orthogonal":
            return _orthogonal(full, dims, dtype, _Stream(int(full["seed"]), tensor_name))[start:stop]
        stream = _Stream(int(full["seed"]), tensor_name, start * math.prod(dims[1:]))
        return _drawn(part, dtype, _distribution(name, full, dims), stream)
    except _UnfitError as unfit:
        raise Error(Problem(where, *unfit.args)) from None


class _UnfitError(Exception):
    """(what, hint): the initializer cannot fill this shape or dtype. Becomes an :class:`Error`."""


# --- the random stream ------------------------------------------------------------------------------------------------


class _Stream:
    """Uniform and normal numbers from PCG64's raw bits, seeded by (seed, tensor name)."""

    def __init__(self, seed: int, tensor_name: str, skipped: int = 0) -> None:
        digest = hashlib.sha256(f"{seed}\0{tensor_name}".encode("utf-8", "surrogatepass")).digest()
        self._bits = np.random.PCG64(int.from_bytes(digest, "big"))
        self._bits.advance(skipped)

    def uniform(self, count: int) -> Array:
        """Float64 in the open interval (0, 1): 52 random bits, at the middle of their cell."""
        raw = np.asarray(self._bits.random_raw(count), dtype=np.uint64)
        result: Array = ((raw >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
        return result

    def normal(self, count: int) -> Array:
        """Float64, standard normal."""
        return normal_quantile(self.uniform(count))


def _horner(x: Array, coefficients: Sequence[float]) -> Array:
    total = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        total *= x
        total += c
    return total


# Wichura, "The percentage points of the normal distribution", Applied Statistics 37 (1988), algorithm AS 241 (PPND16);
# highest power first. Relative error about 1e-16.
# fmt: off
_CENTRE = (
    (
        2.50908092873012267e3, 3.34305755835881281e4, 6.72657709270087009e4, 4.59219539315498715e4,
        1.37316937655094611e4, 1.97159095030655144e3, 1.33141667891784377e2, 3.38713287279636661e0,
    ),
    (
        5.22649527885285456e3, 2.87290857357219427e4, 3.93078958000927106e4, 2.12137943015865959e4,
        5.39419602142475111e3, 6.87187007492057908e2, 4.23133307016009113e1, 1.0,
    ),
)
_MIDDLE = (
    (
        7.74545014278341408e-4, 2.27238449892691846e-2, 2.41780725177450612e-1, 1.27045825245236838e0,
        3.64784832476320460e0, 5.76949722146069141e0, 4.63033784615654530e0, 1.42343711074968358e0,
    ),
    (
        1.05075007164441684e-9, 5.47593808499534495e-4, 1.51986665636164572e-2, 1.48103976427480075e-1,
        6.89767334985100005e-1, 1.67638483018380385e0, 2.05319162663775882e0, 1.0,
    ),
)
_TAIL = (
    (
        2.01033439929228813e-7, 2.71155556874348758e-5, 1.24266094738807844e-3, 2.65321895265761231e-2,
        2.96560571828504891e-1, 1.78482653991729134e0, 5.46378491116411437e0, 6.65790464350110378e0,
    ),
    (
        2.04426310338993979e-15, 1.42151175831644589e-7, 1.84631831751005468e-5, 7.86869131145613259e-4,
        1.48753612908506149e-2, 1.36929880922735805e-1, 5.99832206555887938e-1, 1.0,
    ),
)
# fmt: on


def normal_quantile(p: Array) -> Array:
    """The standard normal's quantiles of probabilities in (0, 1), in float64 (algorithm AS 241)."""
    q = p - 0.5
    square = 0.180625 - q * q
    result: Array = q * _horner(square, _CENTRE[0]) / _horner(square, _CENTRE[1])
    outer = np.abs(q) > 0.425
    if outer.any():
        side = q[outer]
        r = np.sqrt(-np.log(np.minimum(p[outer], 1.0 - p[outer])))
        middle = r - 1.6
        tail = r - 5.0
        magnitude = np.where(
            r <= 5.0,
            _horner(middle, _MIDDLE[0]) / _horner(middle, _MIDDLE[1]),
            _horner(tail, _TAIL[0]) / _horner(tail, _TAIL[1]),
        )
        result[outer] = np.copysign(magnitude, side)
    return result


# --- the initializers -------------------------------------------------------------------------------------------------

_Draw = Callable[[_Stream, int], Array]
# Phi(-2): the probability mass that a normal cut at two standard deviations leaves out on each side.
_CUT = 0.5 * math.erfc(math.sqrt(2.0))


def _uniform(low: float, high: float) -> _Draw:
    return lambda stream, count: low + (high - low) * stream.uniform(count)


def _normal(mean: float, stddev: float) -> _Draw:
    return lambda stream, count: mean + stddev * stream.normal(count)


def _truncated(mean: float, stddev: float) -> _Draw:
    # The quantile of a uniform number between the two cuts has exactly the distribution that TensorFlow reaches by
    # drawing again, at one draw per value.
    def draw(stream: _Stream, count: int) -> Array:
        p = _CUT + (1.0 - 2.0 * _CUT) * stream.uniform(count)
        return mean + stddev * np.clip(normal_quantile(p), -2.0, 2.0)

    return draw


def _distribution(name: str, args: Mapping[str, Any], dims: tuple[int, ...]) -> _Draw:
    if name == "uniform":
        return _uniform(float(args["minval"]), float(args["maxval"]))
    if name == "normal":
        return _normal(float(args["mean"]), float(args["stddev"]))
    if name == "truncated_normal":
        return _truncated(float(args["mean"]), float(args["stddev"]))
    if name == "uniform_unit_scaling":
        limit = math.sqrt(3.0 / max(1, math.prod(dims[:-1]))) * float(args["factor"])
        return _uniform(-limit, limit)
    key = name.replace("xavier", "glorot")
    scale, mode, distribution = _SCALINGS.get(key) or (args["scale"], args["mode"], args["distribution"])
    fan_in, fan_out = fans(dims, _gate_count(args, dims))
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2.0}[mode]
    variance = float(scale) / max(1.0, fan)
    if distribution == "uniform":
        limit = math.sqrt(3.0 * variance)
        return _uniform(-limit, limit)
    if distribution == "truncated_normal":
        return _truncated(0.0, math.sqrt(variance) / TRUNCATED_STDDEV)
    return _normal(0.0, math.sqrt(variance))


def fans(shape: Sequence[int], gates: int = 1) -> tuple[int, int]:
    """``(fan_in, fan_out)`` of one gate of a kernel whose last axis holds ``gates`` of them side by side.

    As ``compute_fans`` of Keras and ``_compute_fans`` of TensorFlow: a scalar has (1, 1), a vector its length twice,
    and the axes before the last two are the receptive field of a convolution.
    """
    dims = [int(d) for d in shape]
    if not dims:
        return 1, 1
    dims[-1] //= gates
    if len(dims) == 1:
        return dims[0], dims[0]
    field = math.prod(dims[:-2])
    return dims[-2] * field, dims[-1] * field


def _drawn(dims: tuple[int, ...], dtype: np.dtype[Any], draw: _Draw, stream: _Stream) -> Array:
    result = np.empty(dims, dtype)
    flat = result.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        part[...] = draw(stream, part.size).astype(dtype)
    return result


def _filled(value: Any, dims: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "b":
        fits = value in (0, 1)
    elif dtype.kind in "iu":
        info = np.iinfo(dtype)
        fits = float(value).is_integer() and info.min <= int(value) <= info.max
        value = int(value) if fits else value
    elif dtype.kind == "c" or _is_float(dtype):
        with np.errstate(over="ignore"):
            fits = bool(np.isfinite(np.asarray(value, np.float64).astype(dtype).astype(np.complex128)))
    else:
        raise _UnfitError(f"cannot fill a tensor of dtype {dtype.name}", "")
    if not fits:
        raise _UnfitError(f"{dtype.name} cannot hold the value {value}", "")
    return np.full(dims, value, dtype)


def _orthogonal(args: Mapping[str, Any], dims: tuple[int, ...], dtype: np.dtype[Any], stream: _Stream) -> Array:
    if len(dims) < 2:
        raise _UnfitError(f"orthogonal needs at least two axes, the shape is {list(dims)}", "use another initializer")
    gates = _gate_count(args, dims)
    rows, columns = math.prod(dims[:-1]), dims[-1] // gates
    result = np.zeros((rows, dims[-1]), dtype)
    if result.size:
        for gate in range(gates):
            tall = (max(rows, columns), min(rows, columns))
            normal = np.concatenate([stream.normal(n) for n in _chunks(tall[0] * tall[1])]).reshape(tall)
            q, r = np.linalg.qr(normal)
            q *= np.where(np.diag(r) < 0, -1.0, 1.0)  # makes the factorization unique, and the result uniform
            block = q if rows >= columns else q.T
            result[:, gate * columns : (gate + 1) * columns] = (float(args["gain"]) * block).astype(dtype)
    return result.reshape(dims)


def _chunks(count: int) -> Iterator[int]:
    return (min(_CHUNK, count - start) for start in range(0, count, _CHUNK))


def _unit_forget_bias(args: Mapping[str, Any], dims: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if not dims or math.prod(dims[:-1]) != 1:
        raise _UnfitError(
            f"unit_forget_bias fills one bias vector, the shape is {list(dims)}",
            "a cell with two biases adds them: give the other one zeros",
        )
    gates = list(args["gates"])
    units = dims[-1] // _gate_count(args, dims)
    result = _filled(0, dims, dtype)
    start = gates.index("f") * units
    result[..., start : start + units] = _filled(args["value"], (), dtype)
    return result


# --- arguments --------------------------------------------------------------------------------------------------------


def _is_float(dtype: np.dtype[Any]) -> bool:
    # ml_dtypes' types are of kind "V" (bfloat16, float8_*); its int4 and uint4 are too, and are no floats.
    return dtype.kind == "f" or (dtype.kind == "V" and dtype.fields is None and "float" in dtype.name)


def _gate_count(args: Mapping[str, Any], dims: tuple[int, ...]) -> int:
    gates = args.get("gates")
    count = 1 if gates is None else gates if isinstance(gates, int) else len(gates)
    if count > 1 and (not dims or dims[-1] % count):
        raise _UnfitError(f"the last axis of shape {list(dims)} does not hold {count} gates of equal size", "")
    return int(count)


def _one_of(value: Any, allowed: Iterable[str]) -> str:
    names = tuple(allowed)
    return "" if value in names else f"{value!r} is not one of {', '.join(names)}"


def _wrong_argument(name: str, key: str, value: Any) -> str:
    """What is wrong with one argument's value, or an empty string."""
    if key == "mode":
        return _one_of(value, _MODES)
    if key == "distribution":
        return _one_of(value, _DISTRIBUTIONS)
    if key == "gates":
        return _wrong_gates(name, value)
    if key == "seed":
        return "" if isinstance(value, int) and not isinstance(value, bool) else f"expected an integer, found {value!r}"
    boolean = isinstance(value, bool) and name != "constant"
    # A huge integer is finite too, but has no float: only its own comparison is safe.
    number = isinstance(value, (int, float)) and not boolean
    if not number or (isinstance(value, float) and not math.isfinite(value)):
        return f"expected a finite number, found {value!r}"
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return f"{value} is too large"
    if key == "stddev" and value < 0:
        return f"{value} is negative"
    if key == "scale" and value <= 0:
        return f"{value} is not positive"
    return ""


def _wrong_gates(name: str, value: Any) -> str:
    if name != "unit_forget_bias":
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            return ""
        expected = "a number of gates or a list of gate names"
    else:
        expected = "a list of gate names"
    listed = isinstance(value, (list, tuple)) and value and all(isinstance(g, str) and g for g in value)
    if not listed:
        return f"expected {expected}, found {value!r}"
    if len(set(value)) != len(value):
        return f"a gate stands twice in {list(value)}"
    if name == "unit_forget_bias" and "f" not in value:
        return f"no forget gate 'f' in {list(value)}"
    return ""
