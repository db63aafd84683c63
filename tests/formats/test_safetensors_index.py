from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.formats._arrays import EXTRA, NUMPY, of_every_dtype, same, specs_of, tiles_of
from tests.support import need
from weightport.errors import BudgetExceeded, Error, FormatError, RefusedError, TensorNotFound
from weightport.formats import detect, files, safetensors_file
from weightport.formats import safetensors_index as si
from weightport.tensors import Budget

INDEX = "model.safetensors.index.json"


def written(folder: Path, arrays: dict[str, Any], shard_size: int = 64, **kwargs: Any) -> Path:
    path = folder / INDEX
    si.write(str(path), specs_of(arrays), tiles_of(arrays), shard_size=shard_size, **kwargs)
    return path


def document(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found


def changed(path: Path, **weights: str | None) -> Path:
    """The index with other entries of its ``weight_map``; None takes one out."""
    found = document(path)
    for name, shard in weights.items():
        found["weight_map"].pop(name, None)
        if shard is not None:
            found["weight_map"][name] = shard
    path.write_text(json.dumps(found))
    return path


def refused(path: Path) -> str:
    with pytest.raises(FormatError) as caught:
        si.open_source(str(path))
    return str(caught.value).removeprefix(f"{path}")


ARRAYS = {"a": np.arange(8, dtype="f4"), "b/c": np.arange(9, dtype="f8"), "é.d": np.arange(4, dtype="i2")}


def test_every_dtype_in_many_shards(tmp_path: Path) -> None:
    arrays = of_every_dtype(NUMPY + EXTRA)
    path = written(tmp_path, arrays)
    with si.open_source(str(path)) as source:
        assert len(set(document(path)["weight_map"].values())) > 5
        assert list(source.specs().items()) == list(specs_of(arrays).items())
        for name, array in arrays.items():
            assert same(source.read(name), array)
            for index in ((slice(1, None),), (slice(0, 2), slice(0, 3, 2)), (slice(0, 0),)):
                if len(index) <= array.ndim:
                    assert same(source.read(name, index), np.ascontiguousarray(array[index]))


def test_dealt_out_in_order_and_loaded_by_safetensors(tmp_path: Path) -> None:
    """What loaders of sharded models do: open each shard that the map names, take from it what the map says."""
    oracle = need("safetensors")
    path = written(tmp_path, ARRAYS, shard_size=40, metadata={"k": "v"})
    names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert document(path) == {
        "metadata": {"total_size": 112, "k": "v"},
        "weight_map": dict(zip(ARRAYS, names, strict=True)),
    }
    assert sorted(os.listdir(tmp_path)) == sorted([INDEX, *names])
    for name, shard in document(path)["weight_map"].items():
        with oracle.safe_open(tmp_path / shard, framework="np") as file:
            assert file.metadata() == {"format": "pt", "k": "v"}
            assert list(file.keys()) == [name]
            assert same(file.get_tensor(name), ARRAYS[name])


@pytest.mark.parametrize(("limit", "count"), [(1, 3), (104, 2), (112, 1), (si.SHARD_BYTES, 1)])
def test_size_of_shards(tmp_path: Path, limit: int, count: int) -> None:
    path = written(tmp_path, ARRAYS, shard_size=limit)
    assert len(set(document(path)["weight_map"].values())) == count


def test_no_tensors(tmp_path: Path) -> None:
    path = written(tmp_path, {})
    with si.open_source(str(path)) as source:
        assert source.specs() == {}


def test_found_by_content_and_by_folder(tmp_path: Path) -> None:
    path = written(tmp_path, ARRAYS)
    os.rename(path, tmp_path / f"other{si.ENDING}")
    for name in (str(tmp_path), str(tmp_path / f"other{si.ENDING}"), f"safetensors:{tmp_path}"):
        with wp.open(name) as source:
            assert source.format == "safetensors"
            assert same(source.read("a"), ARRAYS["a"])
    (tmp_path / "any.json").write_text((tmp_path / f"other{si.ENDING}").read_text())
    with wp.open(tmp_path / "any.json") as source:
        assert set(source.specs()) == set(ARRAYS)
    assert files.files_of(str(tmp_path)) == sorted(str(p) for p in tmp_path.glob("*") if p.name != "any.json")
    os.rename(tmp_path / "any.json", tmp_path / INDEX)
    with pytest.raises(FormatError, match="no checkpoint in this folder"):
        wp.open(tmp_path)
    with pytest.raises(FormatError, match="is a folder without exactly one file that ends in"):
        wp.open(f"safetensors:{tmp_path}")


def test_a_folder_that_says_it_is_tensorflows_is(tmp_path: Path) -> None:
    written(tmp_path, ARRAYS)
    assert si.sniff(str(tmp_path))
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "m"\n')
    assert not si.sniff(str(tmp_path))


def test_digest_is_that_of_all_files(tmp_path: Path) -> None:
    path = written(tmp_path, ARRAYS)
    before = files.digest(str(path))
    assert before == files.digest(str(tmp_path))
    shard = tmp_path / "model-00001-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\1")
    assert files.digest(str(path)) != before


def test_what_the_index_lists_is_in_its_shard(tmp_path: Path) -> None:
    path = written(tmp_path, ARRAYS, shard_size=104)
    first, second = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    assert refused(changed(path, a=second)) == (
        f": tensor 'a': is not in the shard '{second}' that the index names; it stands in '{first}'"
    )
    assert refused(changed(path, a=first, x=first)) == (
        f": tensor 'x': is not in the shard '{first}' that the index names; "
        "is the shard another model's, or not downloaded whole?"
    )


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    path = written(tmp_path, ARRAYS, shard_size=40)
    second = "model-00002-of-00003.safetensors"
    both = {"a": ARRAYS["a"], "b/c": ARRAYS["b/c"]}
    safetensors_file.write(str(tmp_path / second), specs_of(both), tiles_of(both))
    assert refused(path) == (
        f": tensor 'a': stands in the shard '{second}', which the index has in 'model-00001-of-00003.safetensors'"
    )
    changed(path, a=None)
    (tmp_path / "model-00001-of-00003.safetensors").unlink()
    assert refused(path) == f": tensor 'a': stands in the shard '{second}', and the index does not list it"


@pytest.mark.parametrize(
    "shard",
    ["/etc/passwd", "../m.safetensors", "a/../../m.safetensors", "..\\m.safetensors", "", ".", "a//b", "a\0b"],
)
def test_no_shard_outside_the_folder(tmp_path: Path, shard: str) -> None:
    path = changed(written(tmp_path, ARRAYS), a=shard)
    assert refused(path) == f": tensor 'a': the shard {shard!r} is no path below the index' folder: refused"


def test_shards_in_a_folder_below(tmp_path: Path) -> None:
    path = written(tmp_path, ARRAYS, shard_size=1 << 20)
    (tmp_path / "below").mkdir()
    os.rename(tmp_path / "model-00001-of-00001.safetensors", tmp_path / "below" / "x.safetensors")
    changed(path, **dict.fromkeys(ARRAYS, "below/x.safetensors"))
    with si.open_source(str(path)) as source:
        assert same(source.read("a"), ARRAYS["a"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', ": the index has the key 'a' twice"),
        ('{"weight_map": {}, "weight_map": {"a": ".safetensors"}}', ": the index has the key 'weight_map' twice"),
        ('{"weight_map": {"a": ".safetensors"}', " at byte 36: the index is no JSON: Expecting ',' delimiter"),
        ('{"é": 1, "weight_map": {"a": ".safetensors"', " at byte 44: the index is no JSON: Expecting ',' delimiter"),
        (
            '{"weight_map": {"a": ".safetensors"}, "b": ' + "1" * 5000 + "}",
            ": the index is no JSON: nested too deep, or too long a number",
        ),
        ('{"weight_map": {"a": ".safetensors"}, "b": "\udcff"}', " at byte 44: the index is no UTF-8"),
        ('{"weight_map": [".safetensors"]}', ": the index has no 'weight_map' of tensors to files"),
        ('{"weight_map": {"a": 1, "b": ".safetensors"}}', ": the index has no 'weight_map' of tensors to files"),
        ('{"x": {"weight_map": {"a": ".safetensors"}}}', ": the index has no 'weight_map' of tensors to files"),
        (
            '{"weight_map": ".safetensors", "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
            ": the index is no JSON: nested too deep, or too long a number",
        ),
    ],
)
def test_no_index(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / INDEX).write_text(text, encoding="utf-8", errors="surrogateescape")
    assert refused(tmp_path / INDEX) == message


def test_a_shard_that_is_not_there_or_is_truncated(tmp_path: Path) -> None:
    path = written(tmp_path, ARRAYS, shard_size=40)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    for cut in range(len(content)):
        shard.write_bytes(content[:cut])
        with pytest.raises(FormatError, match=f"^{shard}"):
            si.open_source(str(path))
    shard.unlink()
    with pytest.raises(FormatError, match=f"^{shard}: cannot be opened: No such file or directory$"):
        si.open_source(str(path))


def test_an_index_cut_anywhere(tmp_path: Path) -> None:
    path = written(tmp_path, ARRAYS, shard_size=40)
    content = path.read_bytes().rstrip()
    for cut in range(1, len(content)):
        path.write_bytes(content[:cut])
        with pytest.raises(FormatError):
            si.ShardedSource(str(path))


def test_one_budget_for_all_shards(tmp_path: Path) -> None:
    path = written(tmp_path, ARRAYS, shard_size=40)
    with pytest.raises(BudgetExceeded, match="header bytes"):
        si.open_source(str(path), budget=Budget(header_bytes=path.stat().st_size + 100))
    with pytest.raises(BudgetExceeded, match="tensors: 3 asked for, at most 2 allowed"):
        si.open_source(str(path), budget=Budget(tensors=2))


def test_no_such_tensor(tmp_path: Path) -> None:
    with si.open_source(str(written(tmp_path, ARRAYS))) as source:
        with pytest.raises(TensorNotFound, match="closest: 'b/c'"):
            source.read("b/d")
        assert source.facts(["a"]) == {}


def test_written_over_an_older_model(tmp_path: Path) -> None:
    path = written(tmp_path, ARRAYS, shard_size=40)
    (tmp_path / "model-99999-of-99999.safetensors").write_text("not of this model")
    new = {name: array + 1 for name, array in ARRAYS.items()}
    written(tmp_path, new, shard_size=40)
    with si.open_source(str(path)) as source:
        assert all(same(source.read(name), array) for name, array in new.items())
    names = {f"model.1-0000{n}-of-00003.safetensors" for n in (1, 2, 3)}
    assert set(os.listdir(tmp_path)) == {INDEX, "model-99999-of-99999.safetensors", *names}


def test_two_writers_at_once(tmp_path: Path) -> None:
    """The second one begins and ends while the first one is at work: each model is whole, and one is left."""
    first, second = ({name: array + n for name, array in ARRAYS.items()} for n in (1, 2))

    def tiles(name: str) -> Any:
        if name == list(first)[-1]:
            path = written(tmp_path, second, shard_size=40)
            with si.open_source(str(path)) as source:
                assert all(same(source.read(name), array) for name, array in second.items())
        return tiles_of(first)(name)

    si.write(str(tmp_path / INDEX), specs_of(first), tiles, shard_size=40)
    with si.open_source(str(tmp_path / INDEX)) as source:
        assert all(same(source.read(name), array) for name, array in first.items())
    assert len(os.listdir(tmp_path)) == 4


def test_shards_are_as_private_as_the_old_model(tmp_path: Path) -> None:
    path = written(tmp_path, ARRAYS, shard_size=40)
    for file in tmp_path.iterdir():
        file.chmod(0o600)
    written(tmp_path, ARRAYS, shard_size=40)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}
    assert path.exists()


def test_a_failure_leaves_the_older_model(tmp_path: Path) -> None:
    path = written(tmp_path, ARRAYS, shard_size=40)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    broken = {**ARRAYS, "z": np.arange(3, dtype="f4")}

    def tiles(name: str) -> Any:
        if name == "z":
            raise RuntimeError("the source is gone")
        return tiles_of(broken)(name)

    with pytest.raises(RuntimeError, match="the source is gone"):
        si.write(str(path), specs_of(broken), tiles, shard_size=40)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_name_that_no_index_can_hold(tmp_path: Path) -> None:
    path = str(tmp_path / os.fsdecode(b"m\xff.safetensors.index.json"))
    with pytest.raises(Error, match=r"the name of the file, and so of its shards, is no valid text$"):
        si.write(path, specs_of(ARRAYS), tiles_of(ARRAYS))
    assert os.listdir(tmp_path) == []


def test_interrupted_when_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the older model's shards are removed: the new one is there and stays."""
    path = written(tmp_path, ARRAYS, shard_size=40)

    plain = os.unlink

    def interrupt(path: str) -> None:
        if path.endswith(".safetensors"):
            raise KeyboardInterrupt
        plain(path)

    new = {name: array + 1 for name, array in ARRAYS.items()}
    monkeypatch.setattr(os, "unlink", interrupt)
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path, new, shard_size=40)
    with si.open_source(str(path)) as source:
        assert all(same(source.read(name), array) for name, array in new.items())


def test_shards_of_a_killed_writer_are_told_from_other_files(tmp_path: Path) -> None:
    path = written(tmp_path, {}, metadata={"weightport.version": "1"})
    ours, other, broken = (tmp_path / f"model-0000{n}-of-00009.safetensors" for n in (1, 2, 3))
    ours.write_bytes((tmp_path / "model-00001-of-00001.safetensors").read_bytes())
    safetensors_file.write(str(other), {}, tiles_of({}), metadata={"k": "v"})
    broken.write_bytes(b"")
    written(tmp_path, ARRAYS, shard_size=1000)
    shard = document(path)["weight_map"]["a"]
    assert set(os.listdir(tmp_path)) == {INDEX, shard, other.name, broken.name}


def test_where_tensors_lie(tmp_path: Path) -> None:
    path = written(tmp_path, ARRAYS, shard_size=40)
    with si.open_source(str(path)) as source:
        for name, array in ARRAYS.items():
            extent = source.extent(name)
            assert extent is not None
            assert Path(extent.path).read_bytes()[extent.offset :][: extent.nbytes] == array.tobytes()
            assert source.checksum(name) == ""
        assert source.checksum("nowhere") == ""
        with pytest.raises(TensorNotFound) as caught:
            source.extent("b/d")
        assert str(caught.value) == f"{path}: no tensor 'b/d'; closest: 'b/c'"
    with pytest.raises(Error, match="is closed"):
        source.read("a")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"weight_map": {}}', True),
        (' \n{"weight_map" :\n{"a": "x.safetensors"}}', True),
        ('{"weight_map": {"a": "x.bin"}}', False),
        ('["weight_map", {"a": "x.safetensors"}]', False),
        ('{"weight_map": {"a": "x.safetensors"}, "b": ' + " " * 65_536, True),
        ('{"metadata": "' + "x" * 65_536 + '", "weight_map": {"a": "x.safetensors"}}', False),
        ("", False),
    ],
)
def test_told_by_its_beginning(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / "x").write_text(text)
    assert si.is_index(str(tmp_path / "x")) is expected
    assert si.is_sharded(str(tmp_path / "x")) is expected
    assert si.sniff(str(tmp_path / "x")) is expected


def test_what_is_not_there_is_no_index(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert not si.is_index(nowhere)
    assert not si.is_sharded(nowhere)
    assert not si.sniff(nowhere)
    assert si.in_folder(nowhere) is None
    assert si.index_of(nowhere) == nowhere
    with pytest.raises(FormatError) as caught:
        si.index_of(str(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}: is a folder without exactly one file that ends in .safetensors.index.json"
    )


def test_an_index_with_a_byte_order_mark_and_metadata(tmp_path: Path) -> None:
    path = written(tmp_path, ARRAYS)
    found = document(path)
    for metadata, expected in (({"total_size": "wrong", "x": [1]},) * 2, ("text", {}), (None, {})):
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps({**found, "metadata": metadata}).encode())
        with si.open_source(str(path)) as source:
            assert (source.format, source.metadata) == ("safetensors", expected)
    assert si.read_index(str(path), Budget(tensors=3)) == (found["weight_map"], {})


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(Error, match=r"the index of a sharded model is named like 'model\.safetensors\.index\.json'"):
        si.write(str(tmp_path / "m.json"), specs_of(ARRAYS), tiles_of(ARRAYS))
    with pytest.raises(Error, match="a shard of 0 bytes holds nothing"):
        si.write(str(tmp_path / INDEX), specs_of(ARRAYS), tiles_of(ARRAYS), shard_size=0)
    with pytest.raises(Error, match="safetensors cannot hold strings"):
        written(tmp_path, {"a": np.array([b"x"], object)})
    with pytest.raises(Error, match="no valid text"):
        written(tmp_path, {"\udc00": ARRAYS["a"]})
    assert os.listdir(tmp_path) == []


def test_chosen_by_the_outputs_name() -> None:
    assert detect.writer_for(f"x/{INDEX}") == (f"x/{INDEX}", detect.Writer("safetensors_index"))
    sized = detect.Writer("safetensors_index", {"shard_size": 7})
    assert detect.writer_for("m", format="safetensors-index", shard_size=7) == ("m", sized)
    assert detect.writer_for("m.safetensors") == ("m.safetensors", detect.Writer("safetensors_file"))
    with pytest.raises(Error, match=r"safetensors is not written in shards; known: .*safetensors-index"):
        detect.writer_for("m.safetensors", shard_size=7)


def test_through_the_front_door(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", a=ARRAYS["a"], b=ARRAYS["b/c"])
    mapping = {"weightport": 1, "rules": [{"from": "{x}", "to": "m.{x}"}]}
    out = tmp_path / INDEX
    wp.transfer(tmp_path / "m.npz", None, mapping, out=out, shard_size="40")
    assert set(document(out)["weight_map"]) == {"m.a", "m.b"}
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert wp.verify(tmp_path / "m.npz", out, mapping).equal


def test_what_is_read_is_not_written_over(tmp_path: Path) -> None:
    path = written(tmp_path, ARRAYS, shard_size=40)
    mapping = {"weightport": 1, "rules": [{"from": "{x**}", "to": "{x**}"}]}
    for source in (path, tmp_path, tmp_path / "model-00001-of-00003.safetensors"):
        with pytest.raises(RefusedError, match="which is only read; write to another path"):
            wp.transfer(source, None, mapping, out=path)


def test_a_shard_whose_name_no_file_can_have(tmp_path: Path) -> None:
    path = changed(written(tmp_path, ARRAYS), a="\ud800.safetensors")
    with pytest.raises(FormatError, match="cannot be opened: no file can have this name"):
        si.open_source(str(path))
