"""Several sources in one transfer, and moving averages in the place of variables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.cli.command import weightport
from tests.support import fixture
from weightport.formats.files import digest

RAW = np.arange(6, dtype="float32").reshape(2, 3)
EMA = "ExponentialMovingAverage"


def npz(folder: Path, name: str, **tensors: Any) -> str:
    path = str(folder / f"{name}.npz")
    np.savez(path, **{key.replace("__", "/"): value for key, value in tensors.items()})
    return path


def mapping(rules: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"weightport": 1, "rules": rules, **more}


def refused(*arguments: Any, **more: Any) -> list[str]:
    with pytest.raises(wp.Error) as error:
        wp.transfer(*arguments, **more)
    return str(error.value).split("\n")


# --- several sources --------------------------------------------------------------------------------------------------


def test_tensors_of_a_named_source_stand_below_its_name(tmp_path: Path) -> None:
    main = npz(tmp_path, "main", kernel=RAW, old=RAW)
    words = npz(tmp_path, "words", table=RAW + 10, a__b=RAW + 20)
    rules = mapping(
        [{"from": "kernel", "to": "k"}, {"from": "words/table", "to": "t"}, {"from": "words/a/{x}", "to": "{x}"}],
        sources={"words": {}}, ignore=["old"],
    )  # fmt: skip
    out = str(tmp_path / "out.npz")
    result = wp.transfer(main, None, rules, out=out, sources={"words": words})
    with wp.open(out) as made:
        assert {n: made.read(n).tolist() for n in made.specs()} == {
            "k": RAW.tolist(), "t": (RAW + 10).tolist(), "b": (RAW + 20).tolist()
        }  # fmt: skip
    assert result.as_json()["source"] == {
        "kernel": "moved", "old": "ignored", "words/table": "moved", "words/a/b": "moved"
    }  # fmt: skip
    assert str(result).splitlines()[0] == f"{main}, words: {words}"
    assert wp.verify(main, out, rules, sources={"words": words}).equal
    np.savez(words, **{"table": RAW, "a/b": RAW})
    assert not wp.verify(main, out, rules, sources={"words": words}).equal


def test_a_named_source_is_accounted_for(tmp_path: Path) -> None:
    main, words = npz(tmp_path, "main", kernel=RAW), npz(tmp_path, "words", table=RAW, other=RAW)
    rules = mapping([{"from": "kernel", "to": "k"}, {"from": "words/tabel", "to": "t"}], sources={"words": {}})
    hint = "move it by a rule, or list it under ignore:"
    assert refused(main, None, rules, out=str(tmp_path / "o.npz"), sources={"words": words}) == [
        f"rules[1].from: no tensor 'words/tabel' in {main}; closest: 'words/table', 'words/other'",
        f"{main}: source tensor 'words/table' (float32 [2, 3]) is claimed by no rule; {hint}",
        f"{main}: source tensor 'words/other' (float32 [2, 3]) is claimed by no rule; {hint}",
    ]
    assert not (tmp_path / "o.npz").exists()


def test_a_path_in_the_mapping_and_one_from_the_caller(tmp_path: Path) -> None:
    main = npz(tmp_path, "main", kernel=RAW)
    npz(tmp_path, "words", table=RAW + 1)
    other = npz(tmp_path, "other", table=RAW + 2)
    text = (
        "weightport: 1\nsources:\n  words: {path: words.npz}\nrules:\n  - {from: words/table, to: t}\n"
        "  - {from: kernel, to: k}\n"
    )
    path = tmp_path / "m.yaml"
    path.write_text(text, encoding="utf-8")
    out = str(tmp_path / "out.npz")
    weightport("transfer", main, "-m", str(path), "-o", out)
    with wp.open(out) as made:
        assert made.read("t").tolist() == (RAW + 1).tolist()
    weightport("verify", main, out, "-m", str(path))
    weightport("transfer", main, "-m", str(path), "-o", out, "--source", f"words={other}")
    with wp.open(out) as made:
        assert made.read("t").tolist() == (RAW + 2).tolist()
    assert weightport("verify", main, out, "-m", str(path), code=1).out
    weightport("verify", main, out, "-m", str(path), "--source", f"words={other}")
    assert weightport("lint", str(path), "--source", main).out == f"{path}: ok\n"
    assert weightport("lint", str(path), "--source", main, "--source", f"words={other}").out == f"{path}: ok\n"
    plan = json.loads(weightport("transfer", main, "-m", str(path), "--dry-run", "--json").out)
    assert plan["source"] == {"kernel": "moved", "words/table": "moved"}


def test_what_is_wrong_with_named_sources(tmp_path: Path) -> None:
    main, words = npz(tmp_path, "main", kernel=RAW, words__x=RAW), npz(tmp_path, "words", table=RAW)
    rules = mapping([{"from": "kernel", "to": "k"}], sources={"words": {}, "more": {}})
    out = str(tmp_path / "o.npz")
    assert refused(main, None, rules, out=out, sources={"wrods": words}) == [
        "mapping: no source is named 'wrods'; closest: 'words'",
        "sources.words: it is not said where this source is; --source words=PATH, or sources={'words': PATH}",
        "sources.more: it is not said where this source is; --source more=PATH, or sources={'more': PATH}",
    ]
    assert refused(main, None, mapping([{"from": "kernel", "to": "k"}]), out=out, sources={"a": words}) == [
        "mapping: no source is named 'a'; it has no sources:"
    ]
    rules = mapping([{"from": "kernel", "to": "k"}], sources={"words": {}})
    assert refused(main, None, rules, out=out, sources={"words": words}) == [
        f"sources.words: {main} has tensors under that name itself, such as 'words/x'; give this source another name"
    ]
    pinned = mapping([{"from": "v/table", "to": "k"}], sources={"v": {"sha256": "0" * 64}}, ignore=["**"])
    assert refused(main, None, pinned, out=out, sources={"v": words}) == [
        f"{words}: its SHA-256 is {digest(words)}; the mapping is for {'0' * 64}; "
        "this is another file, or a damaged one"
    ]
    own = mapping([{"from": "v/table", "to": "k"}], sources={"v": {}}, ignore=["kernel", "words/x"])
    assert refused(main, None, own, out=words, sources={"v": words}) == [
        f"{words}: is {words} itself, which is only read; write to another path"
    ]
    assert not Path(out).exists()


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("sources: {}", ["m.yaml:2 sources: expected at least 1 entry, found none"]),
        (
            "sources: {1a: {}}",
            ["m.yaml:2 sources.1a: '1a' is no name for a source; letters, digits, _ and -, a letter first"],
        ),
        ("sources: {a: {scope: x}}", ["m.yaml:2 sources.a: unknown key 'scope'; known: path, sha256, prefer"]),
        (
            "sources: {a: {path: ../x}}",
            [
                "m.yaml:2 sources.a.path: '../x' is outside the mapping's folder; a mapping names files in its own "
                "folder, by relative paths"
            ],
        ),
        (
            "source: {scope: x}\nsources: {a: {}}",
            [
                "m.yaml:2 source.scope: the source has a scope, and there are further sources; write the scope in the "
                "names that the rules use"
            ],
        ),
        ("source: {prefer: emu}", ["m.yaml:2 source.prefer: expected ema, found 'emu'; closest: 'ema'"]),
        (
            "source: {prefer: [a]}",
            ["m.yaml:2 source.prefer: expected ema, or {ema: NAME} with the name of the moving averages, found a list"],
        ),
        ("target: {prefer: ema}", ["m.yaml:2 target: unknown key 'prefer'; known: scope"]),
    ],
)  # fmt: skip
def test_messages_of_the_mapping(text: str, messages: list[str]) -> None:
    from weightport.mapping import parse_mapping

    with pytest.raises(wp.MappingError) as error:
        parse_mapping(f"weightport: 1\n{text}\nrules: [{{from: a, to: b}}]\n", "m.yaml")
    assert str(error.value).split("\n") == messages


# --- moving averages --------------------------------------------------------------------------------------------------


def test_averages_in_the_place_of_variables(tmp_path: Path) -> None:
    main = str(tmp_path / "main.npz")
    odd = {"odd": RAW, f"odd/{EMA}": RAW[0]}  # of another shape: no average of it
    np.savez(main, **{"w": RAW, f"w/{EMA}": RAW + 1, "b": RAW + 2, f"only/{EMA}": RAW + 3, **odd})
    rules = mapping([{"from": "{x}", "to": "new/{x}"}], source={"prefer": "ema"}, ignore=["odd/**", "odd"])
    out = str(tmp_path / "o.npz")
    result = wp.transfer(main, None, rules, out=out)
    with wp.open(out) as made:
        assert {n: made.read(n).tolist() for n in made.specs()} == {
            "new/w": (RAW + 1).tolist(), "new/b": (RAW + 2).tolist(), "new/only": (RAW + 3).tolist()
        }  # fmt: skip
    found = result.as_json()
    assert found["source"] == {
        f"w/{EMA}": "moved", "w": "ignored", "b": "moved", f"only/{EMA}": "moved", f"odd/{EMA}": "ignored",
        "odd": "ignored",
    }  # fmt: skip
    assert sorted(found["rules"][0]["from"]) == ["b", f"only/{EMA}", f"w/{EMA}"]
    assert found["rules"][0]["notes"] == ["2 of 3 read from their moving averages; there is none of 'b'"]
    assert wp.verify(main, out, rules).equal
    raw = mapping([{"from": "w", "to": "new/w"}], ignore=["**"], keep=["**"])
    assert not wp.verify(main, out, raw).equal


def test_a_name_of_its_own_and_none_at_all(tmp_path: Path) -> None:
    main = npz(tmp_path, "main", w=RAW, w__slow=RAW + 1)
    own = mapping([{"from": "w", "to": "w"}], source={"prefer": {"ema": "slow"}})
    wp.transfer(main, None, own, out=str(tmp_path / "o.npz"))
    with wp.open(str(tmp_path / "o.npz")) as made:
        assert made.read("w").tolist() == (RAW + 1).tolist()
    usual = mapping([{"from": "w", "to": "w"}], source={"prefer": "ema"})
    assert refused(main, None, usual, out=str(tmp_path / "o.npz")) == [
        f"mapping source.prefer: {main} has no moving average NAME/{EMA}"
    ]


def test_the_averages_of_a_training_run() -> None:
    """The fixture's own model evaluates with the averages: these, not the variables, give its outputs."""
    model = fixture("d_checkpoints/train_state_adam_ema")
    path = model.path("checkpoint_v2")
    values = model.variables
    averages = [n for n in values if n.endswith(f"/{EMA}")]
    assert averages
    rules = mapping(
        [{"from": "{x**}", "to": "new/{x**}"}], source={"prefer": "ema"},
        ignore=["**/Adam", "**/Adam_1", "beta?_power", "global_step"],
    )  # fmt: skip
    layer = {n.removesuffix(f"/{EMA}") for n in averages}
    result = wp.plan(path, None, rules)
    assert not result.problems
    assert {n for n, said in result.source.items() if said == "moved"} >= set(averages)
    assert {n for n, said in result.source.items() if said == "ignored"} >= layer


def test_backwards_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(
        "weightport: 1\nsource: {prefer: ema}\nsources: {a: {}}\nrules: [{from: w, to: w}]\n", encoding="utf-8"
    )
    ran = weightport("transfer", "x.npz", "-m", str(path), "--reverse", "-o", "y.npz", code=1)
    assert ran.err.splitlines() == [
        f"weightport: {path} backwards: the weights of several sources cannot go back by one mapping; "
        "write a mapping for each source",
        f"weightport: {path} backwards: prefer: whether a value goes back to the variable or to its moving average is "
        "not said; leave prefer out of the mapping that goes back",
        "weightport: 2 problems; nothing was written",
    ]
