from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.mapping.test_load import WHOLE
from weightport.errors import MappingError
from weightport.mapping import dump_mapping, load_mapping, parse_mapping
from weightport.mapping._yaml import parse_document

ROOT = Path(__file__).resolve().parents[2]

TIDY = """\
weightport: 1
description: 'a: b # c'
source: {scope: old, sha256: null}
layouts:
  lstm.mine:
    gates: [i, f, g, o]
    tensors:
      k: wx[input (gate unit)]
rules:
  - from: {layout: lstm.tf1, scope: ''}
    to: {layout: lstm.keras, scope: 'no', layers: [0, 1]}
    as: constant
  - from: ['0', '0o17', '1e3', 'true', '0:10', '{a}/b']
    to: x_{n}
    concat: 0
    rearrange: in out -> out in
  - from:
      - encoder/a_rather_long_name_of_a_tensor/that/does/not/fit/kernel
      - encoder/a_rather_long_name_of_a_tensor/that/does/not/fit/recurrent_kernel
    to: é
    initialize: {normal: {stddev: 0.02}}
ignore: ['**/Adam', global_step]
"""


def test_tidy() -> None:
    data = parse_document(TIDY, "m.yaml").data
    assert dump_mapping(data) == TIDY


@pytest.mark.parametrize("path", sorted((ROOT / "mappings").glob("*.yaml")), ids=lambda p: p.stem)
def test_what_ships_comes_back(path: Path) -> None:
    mapping = load_mapping(path)
    again = parse_mapping(dump_mapping(mapping), str(path))
    assert again.document == mapping.document
    assert again.digest == mapping.digest


def test_the_whole_language_comes_back() -> None:
    mapping = parse_mapping(WHOLE)
    assert parse_mapping(dump_mapping(mapping)).document == mapping.document


def test_the_same_value_twice_is_written_twice() -> None:
    same = ["x" * 60, "y" * 60]
    assert "&" not in dump_mapping({"ignore": same, "keep": same})


def test_what_is_no_plain_data() -> None:
    with pytest.raises(MappingError, match=r"^ignore\[0\]: expected plain data, found a value of type bytes$"):
        dump_mapping({"ignore": [b"x"]})


TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text(
    "-?:{}[],&*!|>'\"%@`# 0123e.xotrunl~<=\n", max_size=8
)
DATA = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(TEXT | st.sampled_from(["rules", "layouts", "source"]), DATA, max_size=4))
def test_whatever_is_written_is_read_again(data: dict[str, Any]) -> None:
    text = dump_mapping(data)
    document = parse_document(text, "m.yaml")
    assert document.problems == []
    assert document.data == data
    assert yaml.safe_load(text) == data  # and readers of YAML 1.1 agree
