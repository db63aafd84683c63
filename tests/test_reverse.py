"""Mappings backwards: fine-tuned weights in the names and the bytes that they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp

RNG = np.random.default_rng(0)


def arrays(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    made = {n.replace("__", "/"): RNG.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    for array in made.values():
        array.reshape(-1)[:1] = np.array([0x7FC12345], np.uint32).view(np.float32)  # a NaN with a payload
    return made


def doc(*rules: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"weightport": 1, "rules": list(rules), **more}


def there_and_back(
    tmp_path: Path, source: dict[str, np.ndarray], mapping: dict[str, Any], *, target: bool
) -> dict[str, Any]:
    """What comes back, with or without the original as TARGET."""
    first, middle, last = (str(tmp_path / f"{n}.npz") for n in "abc")
    np.savez(first, **source)  # type: ignore[arg-type]
    rules = wp.load_mapping(mapping)
    wp.transfer(first, None, rules, out=middle)
    wp.transfer(middle, first if target else None, rules.reversed(), out=last)
    with np.load(last) as archive:
        return {n: archive[n] for n in archive.files}


LOSSLESS = [
    pytest.param(
        {"x__w": (3, 4), "x__b": (4,)}, doc({"from": "x/{w}", "to": "y/{w}"}), False, id="names"
    ),
    pytest.param(
        {"block_1__k": (2,), "block_2__k": (3,), "block_12__k": (1,)},
        doc({"from": "block_{n}/k", "to": "h.{n-1}.k"}),
        False,
        id="arithmetic",
    ),
    pytest.param(
        {"l_3__a__w": (2, 5), "l_3__b__w": (2, 3)},
        doc({"from": "l_{n}/{part}/w", "to": "{part}/of_{n}", "rearrange": "in out -> out in"}),
        False,
        id="transposed",
    ),
    pytest.param(
        {"q__0": (4, 3), "k__0": (4, 3), "v__0": (4, 3)},
        doc({"from": ["q/{n}", "k/{n}", "v/{n}"], "to": "qkv/{n}", "concat": 1}),
        False,
        id="equal parts",
    ),
    pytest.param(
        {"q__0": (4, 1), "k__0": (4, 2), "v__0": (4, 3)},
        doc({"from": ["q/{n}", "k/{n}", "v/{n}"], "to": "qkv/{n}", "concat": -1}),
        True,
        id="unequal parts",
    ),
    pytest.param(
        {"w": (6, 5)}, doc({"from": "w", "to": ["a", "b"], "split": {"axis": 0, "sizes": [2, 4]}}), False, id="split"
    ),
    pytest.param({"w": (6, 4)}, doc({"from": "w", "to": "v", "reshape": [2, 3, -1]}), True, id="reshape"),
    pytest.param(
        {"w": (6, 5)},
        doc({"from": "w", "to": "v", "rearrange": {"pattern": "(h d) in -> in h d", "h": 2}}),
        False,
        id="axis split",
    ),
    pytest.param(
        {"w": (2, 3, 5)}, doc({"from": "w", "to": "v", "rearrange": "h d in -> (d h) in"}), True, id="axes joined"
    ),
    pytest.param(
        {"w": (6, 4)},
        doc({"from": "w", "to": "v", "reshape": [2, 3, 4], "rearrange": "a b c -> c (b a)"}),
        True,
        id="reshape and rearrange",
    ),
    pytest.param({"w": (3, 2)}, doc({"from": "w", "to": "v", "pad": [[1, 0], [0, 2]]}), False, id="pad"),
    pytest.param({"w": (3, 2)}, doc({"from": "w", "to": "v", "scale": -0.5}), False, id="power of two"),
    pytest.param(
        {"a__w": (3, 4), "b__w": (3, 4)},
        doc(
            {
                "from": ["a/w", "b/w"], "to": ["x", "y"], "concat": 0, "rearrange": "r c -> c r",
                "pad": [[0, 1], [2, 0]], "scale": 4, "split": 1,
            }
        ),
        True,
        id="all at once",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("shapes", "mapping", "target"), LOSSLESS)
def test_there_and_back_bit_for_bit(
    shapes: dict[str, tuple[int, ...]], mapping: dict[str, Any], target: bool, tmp_path: Path
) -> None:
    source = arrays(**shapes)
    for with_target in {target, True}:
        back = there_and_back(tmp_path, source, mapping, target=with_target)
        assert set(back) == set(source)
        for name, array in source.items():
            assert back[name].tobytes() == array.tobytes(), name
            assert back[name].shape == array.shape


@pytest.mark.parametrize(
    ("shapes", "mapping", "message"),
    [
        (
            {"w": (6, 4)},
            doc({"from": "w", "to": "v", "reshape": [24]}),
            "rules[0]: 'v': reshape: the shape to go back to is not known; give the file that the weights came from as "
            "TARGET",
        ),
        (
            {"w": (2, 3)},
            doc({"from": "w", "to": "v", "rearrange": "a b -> (a b)"}),
            "rules[0]: 'v': rearrange: 'a b -> (a b)' backwards: the sizes of a b are not known; give the file that "
            "the weights came from as TARGET",
        ),
    ],
)
def test_what_needs_the_original_says_so(
    shapes: dict[str, tuple[int, ...]], mapping: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(wp.PlanError) as refusal:
        there_and_back(tmp_path, arrays(**shapes), mapping, target=False)
    assert str(refusal.value.problems[0]) == message
    assert not (tmp_path / "c.npz").exists()


def test_rules_that_cannot_be_undone_are_named_before_anything_is_read(tmp_path: Path) -> None:
    for name in ("old.txt", "new.txt"):
        (tmp_path / name).write_text("a\nb\n")
    path = tmp_path / "mapping.yaml"
    path.write_text(
        """weightport: 1
rules:
  - {from: a, to: b, slice: "0:2"}
  - {from: c, to: d, cast: float16}
  - {from: e, to: f, scale: 3}
  - {from: g, to: h, vocab: {from: old.txt, to: new.txt}}
  - {from: "{x}/w", to: same}
  - {from: i, to: j}
  - {from: k, to: l, dequantize: true}
  - {from: m, to: n, dequantize: false}
"""
    )
    rules = wp.load_mapping(path)
    with pytest.raises(wp.MappingError) as refusal:
        rules.reversed()
    hint = "leave the rule out of the mapping that goes back"
    assert str(refusal.value).splitlines() == [
        f"{path}:3 rules[0] backwards: slice cannot be undone: what it cut off is not there any more; {hint}",
        f"{path}:4 rules[1] backwards: cast cannot be undone: it rounds; {hint}",
        f"{path}:5 rules[2] backwards: scale: 3 cannot be undone exactly (a power of two can); {hint}",
        f"{path}:6 rules[3] backwards: vocab cannot be undone: rows of words that only one side has are not there any "
        f"more; {hint}",
        f"{path}:7 rules[4] backwards: {{x}} does not stand in 'same': the way back has no name for it; {hint}",
        f"{path}:9 rules[6] backwards: dequantize cannot be undone: floats have more values than what is stored; "
        f"{hint}",
    ]


def test_backwards_twice_is_the_mapping_itself() -> None:
    mapping = wp.load_mapping(
        doc(
            {"from": {"layout": "lstm.tf1", "scope": "a"}, "to": {"layout": "lstm.keras", "scope": "b"}},
            {"from": "x/{n}", "to": "y/{n-1}", "optional": True},
            {"to": "head/{w}", "initialize": "zeros"},
            source={"scope": "s", "sha256": "0" * 64},
            target={"scope": "t"},
            ignore=["**/Adam"],
            keep=["old/**"],
        )
    )
    back = mapping.reversed()
    assert back != mapping
    assert back.reversed() == mapping
    assert (back.source.scope, back.target.scope) == ("t", "s")


def test_what_was_ignored_keeps_its_value_and_what_was_made_up_is_left_behind(tmp_path: Path) -> None:
    original = arrays(enc__w=(3, 2), enc__w__Adam=(3, 2), step=(1,))
    new = {
        "body/w": np.zeros((3, 2), np.float32),
        "head/w": np.zeros((2, 2), np.float32),
        "old/w": np.ones(3, np.float32),
    }
    mapping = wp.load_mapping(
        doc(
            {"from": "enc/{w}", "to": "body/{w}"},
            {"from": "nothing/{w}", "to": "body/{w}", "optional": True},
            {"to": "{any}/w", "initialize": {"constant": {"value": 3}}},
            ignore=["**/Adam", "step"],
            keep=["old/**"],
        )
    )
    first, target, tuned, last = (str(tmp_path / f"{n}.npz") for n in "abcd")
    np.savez(first, **original)  # type: ignore[arg-type]
    np.savez(target, **new)  # type: ignore[arg-type]
    wp.transfer(first, target, mapping, out=tuned)
    with np.load(tuned) as archive:
        values = {n: archive[n] for n in archive.files}
    assert values["head/w"].tolist() == [[3, 3], [3, 3]]
    values["body/w"] = values["body/w"] + np.float32(1)
    np.savez(tuned, **values)

    result = wp.transfer(tuned, first, mapping.reversed(), out=last)
    assert result.plan.source == {"body/w": "moved", "head/w": "ignored", "old/w": "ignored"}
    assert result.plan.target == {"enc/w": "moved", "enc/w/Adam": "kept", "step": "kept"}
    with np.load(last) as archive:
        assert archive["enc/w"].tobytes() == values["body/w"].tobytes()
        for name in ("enc/w/Adam", "step"):
            assert archive[name].tobytes() == original[name].tobytes()


def test_a_literal_made_up_name_that_a_rule_moves_is_moved(tmp_path: Path) -> None:
    source = arrays(a=(2,), b=(3,))
    mapping = doc(
        {"from": "a", "to": "head/a"},
        {"from": "b", "to": "head/b"},
        {"to": "head/{w}", "initialize": "zeros", "optional": True},
    )
    first, target, middle, last = (str(tmp_path / f"{n}.npz") for n in "abcd")
    np.savez(first, **source)  # type: ignore[arg-type]
    np.savez(
        target,
        **{"head/a": np.zeros(2, np.float32), "head/b": np.zeros(3, np.float32), "head/c": np.ones(1, np.float32)},
    )
    rules = wp.load_mapping(mapping)
    wp.transfer(first, target, rules, out=middle)
    wp.transfer(middle, first, rules.reversed(), out=last)
    with np.load(last) as archive:
        for name, array in source.items():
            assert archive[name].tobytes() == array.tobytes()


def test_a_cell_that_is_no_bijection_is_still_exact_backwards(tmp_path: Path) -> None:
    """A forget bias that was folded in is taken out again: the same function, though not every bit."""
    from tests.support import fixture

    source = fixture("b_cells/basic_lstm_fb1").path("checkpoint_v2")
    rules = wp.load_mapping(
        doc(
            {
                "from": {"layout": "lstm.tf1", "scope": "rnn/basic_lstm_cell"},
                "to": {"layout": "lstm.keras", "scope": "k"},
            }
        )
    )
    middle, back = tmp_path / "a.npz", tmp_path / "b.npz"
    wp.transfer(source, None, rules, out=middle)
    result = wp.transfer(middle, source, rules.reversed(), out=back)
    assert result.plan.outcomes[0].classed == "exact"
    assert "the forget bias 1 is taken out of the forget gate's bias" in result.plan.outcomes[0].notes
    assert wp.verify(middle, back, rules.reversed()).equal
    with wp.open(source) as before, np.load(back) as after:
        for name in before.specs():
            np.testing.assert_allclose(after[name], before.read(name), rtol=0, atol=2e-7)
