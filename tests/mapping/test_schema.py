from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.mapping.test_load import WHOLE
from weightport.errors import MappingError
from weightport.layouts import table
from weightport.mapping import json_schema, load_mapping, parse_mapping
from weightport.mapping.document import Document
from weightport.mapping.schema import LayoutShape, LayoutVariantShape
from weightport.mapping.shape import _words

ROOT = Path(__file__).resolve().parents[2]
VALIDATOR = jsonschema.Draft202012Validator(json_schema())
DOCUMENT = parse_mapping(WHOLE).document


def accepted(document: Any) -> bool:
    try:
        load_mapping(document)
    except MappingError:
        return False
    return True


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert json_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(json.dumps(json_schema())) == json_schema()
    changed = json_schema()
    changed.clear()
    assert json_schema()


def tables(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, list):
        return [t for n in node for t in tables(n)]
    if not isinstance(node, dict):
        return []
    return [*([node] if "properties" in node else []), *(t for n in node.values() for t in tables(n))]


def test_every_key_is_described() -> None:
    schema = json_schema()
    found = tables(schema)
    assert len(found) == 15
    layouts = ("LayoutShape", "LayoutVariantShape")  # a title needs no description
    for shape in found:
        assert shape["description"]
        for key, value in shape["properties"].items():
            assert value.get("description") or (shape["title"] in layouts and key == "title"), (shape["title"], key)


def test_every_example_is_valid() -> None:
    schema = json_schema()
    count = 0
    for shape in tables(schema):
        for value in shape["properties"].values():
            for example in value.get("examples", ()):
                jsonschema.Draft202012Validator({**value, "$defs": schema["$defs"]}).validate(example)
                count += 1
    assert count > 25


@pytest.mark.parametrize("path", sorted((ROOT / "mappings").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_mappings_that_ship_are_valid(path: Path) -> None:
    VALIDATOR.validate(load_mapping(path).document)


def test_the_whole_language_is_valid() -> None:
    VALIDATOR.validate(DOCUMENT)


BROKEN: list[tuple[tuple[Any, ...], Any]] = [
    ((), []),
    (("weightport",), 2),
    (("weightport",), "1"),
    (("weightport",), None),
    (("description",), 1),
    (("sorce",), {}),
    (("source",), "a"),
    (("source", "scope"), "/a"),
    (("source", "scope"), "a/"),
    (("source", "scope"), "{n}"),
    (("source", "sha256"), "12"),
    (("target", "sha256"), None),
    (("layouts",), []),
    (("layouts", "lstm.mine"), 3),
    (("layouts", "lstm.mine", "gates"), 3),
    (("rules",), []),
    (("rules",), {}),
    (("rules", 0), "a"),
    (("rules", 0, "as"), "x"),
    (("rules", 0, "optional"), 1),
    (("rules", 0, "from", "layot"), "x"),
    (("rules", 0, "from", "layers"), -1),
    (("rules", 0, "from", "layers"), []),
    (("rules", 0, "from", "layers"), [0, 0]),
    (("rules", 0, "from", "directions"), "left"),
    (("rules", 0, "from", "forget_bias"), "1"),
    (("rules", 0, "from", "forget_bias"), None),
    (("rules", 0, "from", "gates"), []),
    (("rules", 1, "from", "reset"), "middle"),
    (("rules", 2, "from"), ""),
    (("rules", 2, "from"), []),
    (("rules", 2, "from"), [1]),
    (("rules", 2, "to"), 1),
    (("rules", 2, "concat"), "1"),
    (("rules", 2, "concat"), 64),
    (("rules", 2, "initialize"), "zeros"),
    (("rules", 2, "unknown"), 1),
    (("rules", 3, "slice"), 1),
    (("rules", 3, "reshape"), [-2]),
    (("rules", 3, "rearrange"), {"h": 1}),
    (("rules", 3, "rearrange"), {"pattern": "a -> a", "a": 0}),
    (("rules", 3, "vocab"), {"from": "a"}),
    (("rules", 3, "pad"), [[1]]),
    (("rules", 3, "pad"), {"value": 1}),
    (("rules", 3, "scale"), "1"),
    (("rules", 3, "cast"), 1),
    (("rules", 3, "split"), {"sizes": [3, 9]}),
    (("rules", 4, "initialize"), {}),
    (("rules", 4, "initialize"), {"zeros": None}),
    (("rules", 4, "initialize"), {"zeros": {}, "ones": {}}),
    (("ignore",), "a"),
    (("ignore",), None),
    (("keep", 0), ""),
]


@pytest.mark.parametrize(("trail", "value"), BROKEN, ids=lambda v: json.dumps(v)[:40])
def test_what_is_broken_in_shape_is_broken_for_both(trail: tuple[Any, ...], value: Any) -> None:
    document = copy.deepcopy(DOCUMENT)
    if trail:
        place: Any = document
        for part in trail[:-1]:
            place = place[part]
        place[trail[-1]] = value
    else:
        document = value
    assert not VALIDATOR.is_valid(document)
    if trail:
        assert not accepted(document)


@pytest.mark.parametrize(
    "trail", [("weightport",), ("rules",), ("rules", 0, "to"), ("rules", 2, "from"), ("rules", 0, "from", "scope")]
)
def test_what_is_missing_is_missed_by_both(trail: tuple[Any, ...]) -> None:
    document = copy.deepcopy(DOCUMENT)
    place: Any = document
    for part in trail[:-1]:
        place = place[part]
    del place[trail[-1]]
    assert not VALIDATOR.is_valid(document)
    assert not accepted(document)


VALUES = st.sampled_from(
    ["a", "b/{n}", "", 0, 1, -1, 1.5, True, None, [], ["a"], ["a", "b"], [0], [[0, 1]], {}, "zeros", "in o -> o in"]
)
CELLS = st.fixed_dictionaries(
    {"layout": st.sampled_from(["lstm.tf1", "lstm.keras", "x"]), "scope": st.sampled_from(["", "a", "a/"])},
    optional={"layers": VALUES, "directions": st.sampled_from(["forward", ["forward"], 1]), "forget_bias": VALUES},
)
RULES = st.fixed_dictionaries(
    {"to": VALUES | CELLS},
    optional={
        "from": VALUES | CELLS,
        "initialize": VALUES | st.just({"normal": {"seed": 1}}),
        "as": st.sampled_from(["initial", "constant", "x"]),
        "concat": VALUES,
        "slice": st.sampled_from([":", [":"], 1]),
        "rearrange": VALUES,
        "scale": VALUES,
        "cast": st.sampled_from(["int8", "x", 1]),
        "split": VALUES | st.just({"axis": 0}),
        "optional": VALUES,
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {"weightport": st.just(1), "rules": st.lists(RULES, min_size=1, max_size=2)},
    optional={"ignore": VALUES, "source": st.sampled_from([{}, {"scope": "a"}, {"sha256": None}, 1])},
)


@settings(max_examples=150)
@given(DOCUMENTS)
def test_what_the_loader_accepts_is_valid(document: dict[str, Any]) -> None:
    if accepted(document):
        VALIDATOR.validate(document)


def test_the_shapes_of_layouts_cover_the_keys_of_their_tables() -> None:
    # parse_layout trusts the shapes of values: a key that the schema does not know would reach it unchecked.
    assert set(LayoutShape.model_fields) == table._KEYS
    assert set(LayoutVariantShape.model_fields) == table._VARIANT_KEYS


def test_a_mistake_of_a_kind_that_has_no_words_yet() -> None:
    document = Document("m.yaml", ".")
    assert _words(document, ("a",), {"type": "of_tomorrow", "input": 5}) == ("not valid here: 5", "")
