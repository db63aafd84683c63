"""Damage behind good checksums: whatever an index or an object graph says, reading ends in a value or an error."""

from __future__ import annotations

import contextlib
from pathlib import Path

import crc32c
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.formats.test_table import build
from tests.formats.test_tf_bundle import bundle, bytes_field, entry, number_field, part_entries, stored
from tests.support import fixture
from weightport.errors import Error
from weightport.formats import _slices, tf_bundle, tf_objects, tf_v1
from weightport.formats._io import ByteFile
from weightport.formats._table import Table, mask
from weightport.tensors import Budget

QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
SMALL = Budget(tensor_bytes=1 << 24, header_bytes=1 << 24)


def mutated(draw: st.DataObject, data: bytes) -> bytes:
    """A few bytes changed, removed, doubled or put in."""
    out = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, max(0, len(out) - 1)))
        kind = draw.draw(st.sampled_from(["change", "remove", "insert", "double", "cut"]))
        if kind == "change" and out:
            out[at] = draw.draw(st.integers(0, 255))
        elif kind == "remove":
            del out[at : at + draw.draw(st.integers(1, 4))]
        elif kind == "insert":
            out[at:at] = draw.draw(st.binary(min_size=1, max_size=10))
        elif kind == "double":
            out += out[at:]
        else:
            del out[at:]
    return bytes(out)


def read_all(source: tf_bundle.BundleSource | tf_v1.V1Source) -> None:
    with source:
        try:
            names = list(source.specs())
        except Error:
            return
        source_names = list(source.raw_names()) + names
        for name in source_names:
            with contextlib.suppress(Error):
                spec = source.specs()[name] if name in names else None
                value = source.read(name, (slice(0, 1),) if spec and spec.shape else None)
                assert value.nbytes <= 1 << 24
            with contextlib.suppress(Error):
                source.read(name)


@given(st.data())
@QUICK
def test_bundle_entries(tmp_path: Path, draw: st.DataObject) -> None:
    entries, data = part_entries((4, 2), (((0, 2), (0, 2)), ((2, 2), (0, 2))))
    more = bytearray(data)
    entries[b"w"] = stored(np.arange(6, dtype=np.int16).reshape(2, 3), more)
    strings = b"\1\2" + b"\0\0\0\0abc"
    entries[b"s"] = entry((2,), dtype=7, offset=len(more), size=len(strings), crc=mask(crc32c.crc32c(strings)))
    more += strings
    key = draw.draw(st.sampled_from(sorted(entries)))
    entries[key] = mutated(draw, entries[key])
    path = bundle(tmp_path, entries, bytes(more))
    read_all(tf_bundle.BundleSource(path, budget=SMALL))


@given(st.dictionaries(st.binary(min_size=1, max_size=6), st.binary(max_size=40), max_size=5), st.binary(max_size=10))
@QUICK
def test_any_entries(tmp_path: Path, entries: dict[bytes, bytes], header: bytes) -> None:
    path = bundle(tmp_path, entries, bytes(100), header=number_field(1, 1) + header)
    with contextlib.suppress(Error):
        read_all(tf_bundle.BundleSource(path, budget=SMALL))


GRAPHS = {}
for _name in ("masked_text_classifier", "v2_lstm"):
    with tf_bundle.open_source(fixture(f"c_keras/{_name}").path("checkpoint_object_based")) as _source:
        GRAPHS[_name] = (_source.read(tf_objects.GRAPH_KEY).item(), list(_source.raw_names()))


@given(st.sampled_from(sorted(GRAPHS)), st.data())
@QUICK
def test_object_graphs(which: str, draw: st.DataObject) -> None:
    graph, keys = GRAPHS[which]
    with contextlib.suppress(Error):
        named, aliases = tf_objects.from_graph(mutated(draw, graph), "f", keys, lambda *_: True, SMALL)
        # Whatever the names, no tensor is lost and none is listed twice.
        assert sorted([key for key, _ in named.values()] + list(aliases)) == sorted(keys)


@given(st.data())
@QUICK
def test_v1_values(tmp_path: Path, draw: st.DataObject) -> None:
    with ByteFile(fixture("d_checkpoints/partitioned").path("checkpoint_v1")) as file:
        items = dict(Table(file, Budget()).items())
    key = draw.draw(st.sampled_from([b"", *sorted(items)]))
    items[key] = mutated(draw, items[key])
    path = tmp_path / "c"
    path.write_bytes(build(items, block_size=draw.draw(st.sampled_from([1, 1000])), compress=draw.draw(st.booleans())))
    with contextlib.suppress(Error):
        read_all(tf_v1.V1Source(str(path), [str(path)], budget=SMALL))


@given(st.binary(max_size=60))
@QUICK
def test_slices_and_keys(data: bytes) -> None:
    with contextlib.suppress(Error):
        cut = _slices.slice_of(data, "f")
        _slices.slice_key(data, cut)
        _slices.boxes([cut], (3,) * len(cut), "f", "v")
    with contextlib.suppress(Error):
        tf_objects.from_graph(bytes_field(1, data), "f", ("a",), lambda *_: True, SMALL)
