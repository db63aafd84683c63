"""What stored leaves of JAX trees are called, and their roles."""

from __future__ import annotations

import pytest

from weightport.formats._jax_names import scopes_of, unboxed, with_roles
from weightport.tensors import TensorSpec


@pytest.mark.parametrize(
    ("stored", "names"),
    [
        ([], []),
        (["value"], ["value"]),
        (["a/value"], ["a/value"]),  # alone, it may as well be a parameter of that name
        (["a/kernel/value"], ["a/kernel"]),
        (["a/value", "b/value"], ["a", "b"]),
        (["a/b/value", "a/c/value", "d/x"], ["a/b", "a/c", "d/x"]),
        (["a/b/value", "a/c/other", "d/value"], ["a/b/value", "a/c/other", "d/value"]),
        (["a/kernel/value", "a/kernel/names", "b/x"], ["a/kernel/value", "a/kernel/names", "b/x"]),
        (["params/a/kernel/value", "params/a/bias"], ["params/a/kernel", "params/a/bias"]),
        (["params/a/temperature/value", "params/a/bias"], ["params/a/temperature/value", "params/a/bias"]),
        (["a/kernel/value", "a/kernel"], ["a/kernel/value", "a/kernel"]),  # keys that have a slash themselves
    ],
)
def test_boxes_of_one_array(stored: list[str], names: list[str]) -> None:
    assert unboxed(dict.fromkeys(stored)) == dict(zip(stored, names, strict=True))


def roles(
    *names: str, dtype: str = "float32", shape: tuple[int, ...] = (2,), **more: tuple[str, tuple]
) -> dict[str, str]:
    specs = {n: TensorSpec.of(dtype, shape) for n in names}
    specs |= {n.replace("__", "/"): TensorSpec.of(kind, dims) for n, (kind, dims) in more.items()}
    return {n: s.role for n, s in with_roles(specs).items() if s.role != "weight"}


def test_roles() -> None:
    scalar = ("int32", ())
    assert roles("params/a/kernel", "batch_stats/a/mean", step=scalar) == {"step": "counter"}
    assert roles("params/a/kernel", "opt_state/0/mu/a/kernel", "opt_state/1/trace/b", opt_state__0__count=scalar) == {
        "opt_state/0/mu/a/kernel": "slot",
        "opt_state/1/trace/b": "optimizer",
        "opt_state/0/count": "optimizer",
    }
    assert roles("target/a/kernel", "state/param_states/a/kernel/v", state__step=scalar) == {
        "state/param_states/a/kernel/v": "slot",
        "state/step": "counter",
    }
    assert roles("model/a/kernel", "opt/opt_state/0/nu/a/kernel", opt__step=scalar, model__step=scalar) == {
        "opt/opt_state/0/nu/a/kernel": "slot",
        "opt/step": "counter",
    }
    assert roles("step", "a/opt_state_x/b", "rngs/key", params__step=scalar) == {}
    assert roles("x", rngs__default__key=("uint32", (2,)), drop__rngs__count=("uint32", ()), rngs__size=scalar) == {
        "rngs/default/key": "counter",
        "drop/rngs/count": "counter",
    }


@pytest.mark.parametrize(
    ("name", "scopes"),
    [("a", []), ("a/b", ["a"]), ("a/b/c", ["a", "a/b"]), ("/a/b", ["", "/a"]), ("a//b", ["a", "a/"]), ("", [])],
)
def test_every_scope_of_a_name(name: str, scopes: list[str]) -> None:
    assert list(scopes_of(name)) == scopes
