"""Models by URL: specs and values as by path, few requests, nothing but what is read, errors without secrets."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightport as wp
from tests.formats._arrays import same, specs_of
from tests.formats.test_contract import READERS, Made
from tests.serving import Served, in_memory, serving
from tests.support import FIXTURES, need
from weightport.errors import Error, FormatError, MissingPackage
from weightport.formats import _fs, _remote, _remote_file, detect
from weightport.formats._io import ByteFile
from weightport.formats.files import digest, files_of

fsspec = need("fsspec")


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty file system in memory, and nothing placed yet."""
    with in_memory(monkeypatch) as fs:
        yield fs


@pytest.fixture
def web() -> Iterator[Served]:
    need("aiohttp")
    with serving({}) as served:
        yield served


def contents(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def model(arrays: dict[str, Any], suffix: str = ".safetensors") -> dict[str, bytes]:
    """The files of a model, by their names: ``m`` and its suffix."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path, write = detect.writer_for(os.path.join(folder, f"m{suffix}"))
        write(path, specs_of(arrays), lambda name: iter([arrays[name]]))
        return contents(Path(folder))


# The same as by path -----------------------------------------------------------------------------------------------


def places(kind: str, memory: Any, web: Served, folder: Path, tmp_path: Path) -> str:
    """Where a copy of a folder is found by URL."""
    found = contents(folder)
    if kind == "memory":
        for name, data in found.items():
            memory.pipe_file(f"/models/{name}", data)
        return "memory://models"
    if kind == "http":
        web.files.update({f"models/{name}": data for name, data in found.items()})
        return f"{web.url}/models"
    archive = tmp_path / "models.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED) as out:
        for name, data in found.items():
            out.writestr(f"models/{name}", data)
    if kind == "zip over http":
        web.files["a.zip"] = archive.read_bytes()
        return f"zip://models::{web.url}/a.zip"
    return f"zip://models::file://{archive}"


def joined(base: str, name: str) -> str:
    first, chain, rest = base.partition("::")
    return f"{first}/{name}{chain}{rest}"


_made: dict[str, Made] = {}


@pytest.mark.parametrize("kind", ["memory", "http", "zip", "deflated", "zip over http"])
@pytest.mark.parametrize("name", sorted(READERS))
def test_a_url_gives_what_the_path_gives(
    name: str, kind: str, memory: Any, web: Served, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if name not in _made:
        _made[name] = READERS[name](tmp_path_factory.mktemp(name))
    path = Path(_made[name].path)
    base = places(kind, memory, web, path.parent, tmp_path)
    url = joined(base, path.name)
    with wp.open(path) as local, wp.open(url) as remote:
        assert remote.format == local.format
        assert dict(remote.specs()) == dict(local.specs())
        for tensor, spec in local.specs().items():
            if spec.unread or spec.dtype.hasobject:
                continue
            assert same(remote.read(tensor), local.read(tensor))
        assert remote.path == _fs.placed(url)
    assert digest(url) == digest(path)
    assert [f.rpartition("/")[2] for f in files_of(url)] == [f.rpartition("/")[2] for f in files_of(path)]
    with wp.open(f"{local.format}:{url}") as forced:
        assert forced.format == local.format


@pytest.mark.parametrize("folder", ["d_checkpoints", "e_old_naming", "c_keras", "a_seed_char_lstm"])
def test_every_checkpoint_and_folder_of_the_fixtures(folder: str, memory: Any) -> None:
    for name, data in contents(FIXTURES / folder).items():
        memory.pipe_file(f"/{folder}/{name}", data)
    opened = 0
    for path in sorted((FIXTURES / folder).rglob("*")):
        at = path.with_suffix("") if path.suffix == ".index" else path
        url = f"memory://{at.relative_to(FIXTURES).as_posix()}"
        try:
            local = wp.open(at)
        except Error as error:
            with pytest.raises(type(error)):
                wp.open(url)
            continue
        with local, wp.open(url) as remote:
            assert (remote.format, dict(remote.specs())) == (local.format, dict(local.specs()))
            opened += 1
    assert opened > 3


def test_file_urls_are_paths(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", a=np.arange(3))
    with wp.open(f"file://{tmp_path}/m.npz") as source, wp.open(f"npz:file://{tmp_path}/m.npz") as forced:
        assert source.path == forced.path == f"{tmp_path}/m.npz"


def test_a_model_at_the_root(memory: Any) -> None:
    for name, data in model({"a": np.arange(3)}, ".ckpt").items():
        memory.pipe_file(f"/{name}", data)
    with wp.open("memory://m.ckpt") as source, wp.open("memory://m.ckpt.index") as index, wp.open("memory://") as all_:
        assert list(source.specs()) == list(index.specs()) == list(all_.specs()) == ["a"]


# Requests and bytes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "most"), [(".ckpt", 4), (".safetensors", 6), (".npz", 16), (".pt", 10), (".safetensors.index.json", 9)]
)
def test_opening_thousands_of_tensors_takes_a_few_requests(web: Served, suffix: str, most: int) -> None:
    count = 20_000 if suffix == ".ckpt" else 4_000
    arrays = {f"layer_{i // 10}/v{i % 10}": np.full(4, i, np.float32) for i in range(count)}
    web.files = model(arrays, suffix)
    with wp.open(f"{web.url}/m{suffix}") as source:
        assert len(source.specs()) == count
        # Besides: what is there is asked by HEAD, of the few names that it may have.
        assert len(web.gets()) <= most
        assert len(web.asked) - len(web.gets()) <= 6
        assert web.sent <= 1.5 * sum(map(len, web.files.values()))
        web.asked.clear()
        for name in list(source.specs())[:4_000]:
            assert same(source.read(name), arrays[name])
        assert len(web.gets()) <= 12  # neighbours come together


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".npz", ".h5", ".pt"])
def test_only_what_is_read_is_fetched(web: Served, suffix: str) -> None:
    arrays = {f"t{i}": np.arange(1 << 18, dtype=np.float32) + i for i in range(20)}
    web.files = model(arrays, suffix)
    size = sum(map(len, web.files.values()))
    with wp.open(f"{web.url}/m{suffix}") as source:
        assert same(source.read("t7"), arrays["t7"])
        assert web.sent < 3 << 20 < size // 6
        before = web.sent
        assert same(source.read("t9", (slice(100, 200),)), arrays["t9"][100:200])
        if suffix in (".safetensors", ".h5"):  # others' checksums are of the whole tensor
            assert web.sent - before < 1 << 18


@pytest.mark.parametrize("turned", [False, True])
def test_a_transfer_fetches_every_byte_once(web: Served, tmp_path: Path, turned: bool) -> None:
    arrays = {f"t{n}": np.arange(1 << 19, dtype=np.float32).reshape(1024, 512) + n for n in range(8)}
    web.files = model(arrays, ".ckpt")
    rule = {"from": "{n}", "to": "{n}", **({"rearrange": "i j -> j i"} if turned else {})}
    out = tmp_path / "o.npz"
    wp.transfer(f"{web.url}/m.ckpt", None, {"weightport": 1, "rules": [rule]}, out=out)
    with np.load(out) as found:
        assert all(same(found[n], np.ascontiguousarray(a.T) if turned else a) for n, a in arrays.items())
    assert web.sent < 1.05 * sum(map(len, web.files.values()))
    assert len(web.gets()) < 25


def test_long_ranges_come_in_parts_side_by_side(web: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_remote_file, "PART", 1 << 20)
    array = np.arange(5 << 18, dtype=np.float32)
    web.files = model({"a": array})
    with wp.open(f"{web.url}/m.safetensors") as source:
        web.asked.clear()
        assert same(source.read("a"), array)
    spans = sorted((int(s[6:].split("-")[0]), int(s.split("-")[1])) for _, s in web.gets())
    assert len(spans) == 5
    assert all(end + 1 == start for (_, end), (start, _) in itertools.pairwise(spans))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_reads_are_slices_whatever_was_read_before(draw: st.DataObject) -> None:
    data = np.random.default_rng(0).bytes(3 << 20)
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/some/file", data)
    at = _fs.placed("memory://some/file")
    with ByteFile(at) as file:
        for _ in range(draw.draw(st.integers(1, 12))):
            start = draw.draw(st.integers(0, len(data)))
            count = draw.draw(st.one_of(st.integers(0, 300), st.integers(0, 1 << 20)))
            count = min(count, len(data) - start)
            what = draw.draw(st.sampled_from(["read", "into", "chunks", "rows", "expect"]))
            if what == "read":
                assert file.read(start, count) == data[start : start + count]
            elif what == "into":
                buffer = bytearray(count)
                file.read_into(start, memoryview(buffer))
                assert buffer == data[start : start + count]
            elif what == "chunks":
                assert b"".join(file.chunks(start, count)) == data[start : start + count]
            elif what == "expect":
                file.expect(start, count)
            else:
                size = draw.draw(st.integers(1, 5_000))
                starts = draw.draw(st.lists(st.integers(0, len(data) - size), min_size=1, max_size=20))
                rows = np.zeros((len(starts), size), np.uint8)
                assert file.read_rows(starts, rows, lambda row, _: int(row[0])) == [data[s] for s in starts]
                assert [r.tobytes() for r in rows] == [data[s : s + size] for s in starts]
        kept = file._shared.blocks  # type: ignore[attr-defined]
        assert len(kept) * _remote_file.BLOCK <= _remote_file.KEPT


def test_what_is_kept_is_bounded(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_remote_file, "KEPT", 4 * _remote_file.BLOCK)
    monkeypatch.setattr(_remote_file, "AHEAD", 2 * _remote_file.BLOCK)
    data = np.random.default_rng(0).bytes(2 << 20)
    memory.pipe_file("/f/file", data)
    with ByteFile(_fs.placed("memory://f/file")) as file:
        for start in (*range(0, len(data) - 1000, 1000), *range(len(data) - 1000, 0, -70_000)):
            assert file.read(start, 1000) == data[start : start + 1000]
            assert len(file._shared.blocks) <= 4  # type: ignore[attr-defined]


def test_a_server_without_ranges_is_read_whole_and_says_so(web: Served, caplog: pytest.LogCaptureFixture) -> None:
    arrays = {f"t{i}": np.arange(1 << 18, dtype=np.float32) + i for i in range(3)}
    web.files = model(arrays)
    web.ranges = False
    with wp.open(f"{web.url}/m.safetensors") as source:
        for name, array in arrays.items():
            assert same(source.read(name), array)
    what = "cannot be read in parts there, and has to be downloaded whole (3.1 MB or more)"
    assert [r.getMessage() for r in caplog.records] == [f"{web.url}/m.safetensors: {what}"]


def test_a_download_that_would_fill_the_disk_is_refused(web: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    web.files = model({"t": np.zeros(1 << 19, np.float32)})
    web.ranges = False
    monkeypatch.setattr(_remote_file.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20})())
    monkeypatch.setattr(_remote_file.tempfile, "gettempdir", lambda: "here")
    what = "cannot be read in parts there, and has to be downloaded whole: 2.1 MB or more"
    with pytest.raises(Error) as caught, wp.open(f"{web.url}/m.safetensors") as source:
        source.read("t")
    assert str(caught.value) == f"{web.url}/m.safetensors: {what}, half of what is free in here is 524.3 kB"


# Errors ------------------------------------------------------------------------------------------------------------


def message(url: str) -> str:
    with pytest.raises(Error) as caught, wp.open(url) as source:
        source.read(next(iter(source.specs())))
    shown: BaseException | None = caught.value
    while shown is not None:  # nor in what a traceback would print
        assert "SECRET" not in str(shown)
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)
    return str(caught.value)


def test_errors_are_weightports_own(web: Served) -> None:
    web.files = model({"a": np.arange(1 << 19)})
    at = f"{web.url}/m.safetensors"
    assert (
        message(f"{web.url}/n.safetensors")
        == f"{web.url}/n.safetensors: no such file or checkpoint; near: 'm.safetensors'"
    )
    web.statuses = {"m.safetensors": [403]}
    assert message(at) == f"{at}: access denied (HTTP 403); credentials are those that fsspec finds"
    web.statuses = {"m.safetensors": [500]}
    assert message(at) == f"{at}: cannot be read: the server says (HTTP 500)"
    web.statuses = {"m.safetensors": [200, 200, 404]}
    assert message(at) == f"{at}: no such file"


def test_nobody_listens() -> None:
    need("aiohttp")
    with serving({}) as served:
        gone = served.url
    said = message(f"{gone}/m.npz")
    assert said.startswith(f"{gone}/m.npz: cannot be read: ClientConnectorError")


def test_what_the_network_lost_is_asked_for_again(web: Served) -> None:
    web.files = model({"a": np.arange(1 << 18)})
    web.statuses = {"m.safetensors": [0, 200, 0, 503, 200]}
    with wp.open(f"{web.url}/m.safetensors") as source:
        assert same(source.read("a"), np.arange(1 << 18))


def test_secrets_go_to_the_server_and_nowhere_else(web: Served, tmp_path: Path) -> None:
    web.files = model({"a": np.arange(3, dtype=np.float32)})
    web.needs = "SECRET"
    at = f"{web.url}/m.safetensors"
    with wp.open(f"{at}?token=SECRET") as source:
        assert source.path == at
        assert same(source.read("a"), np.arange(3, dtype=np.float32))
    mapping = {"weightport": 1, "rules": [{"from": "a", "to": "b"}]}
    out = tmp_path / "o.safetensors"
    result = wp.transfer(f"{at}?token=SECRET", None, mapping, out=out)
    assert b"SECRET" not in out.read_bytes()
    assert "SECRET" not in str(result)
    web.needs = "OTHER"
    assert message(f"{at}?token=SECRET&x=1") == (
        f"{at.replace('http', 'http.2', 1)}: access denied (HTTP 403); credentials are those that fsspec finds"
    )
    web.needs = "Basic"
    with wp.open(at.replace("//", "//user:SECRET@")) as source:
        assert "SECRET" not in source.path


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://key:secret@bucket/a/b.npz", "s3://bucket/a/b.npz"),
        ("https://token@host/a/b.npz?sig=secret#part", "https://host/a/b.npz"),
        ("abfs://container@account/a.npz", "abfs://container@account/a.npz"),
        ("memory:///a/b.npz", "memory://a/b.npz"),
        ("zip://in/a.npz::https://u:p@host/a.zip?q=1", "zip://https://host/a.zip!/in/a.npz"),
        ("zip://a.npz::models/a.zip", "zip://models/a.zip!/a.npz"),
        ("zip://::memory://a.zip", "zip://memory://a.zip!"),
        ("simplecache::https://host/a.npz?q=1", "simplecache+https://host/a.npz"),
        ("s3://bucket/folder/", "s3://bucket/folder"),
    ],
)
def test_what_a_url_is_called(url: str, shown: str) -> None:
    assert _remote.label(url) == shown


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingPackage) as caught:
        wp.open("s3://bucket/a.npz")
    assert str(caught.value) == "reading s3://bucket/a.npz needs s3fs; pip install s3fs"
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingPackage) as caught:
        wp.open("https://user:SECRET@host/a.npz")
    assert str(caught.value) == "reading https://host/a.npz needs fsspec; pip install 'weightport[remote]'"


def test_kinds_of_urls_that_nobody_knows() -> None:
    with pytest.raises(Error, match=r"^nosuch://host/a\.npz: no kind of URL that fsspec knows$"):
        wp.open("nosuch://host/a.npz")


_LOCAL = """
import sys
from weightport.cli import main
sys.argv = ["weightport", "inspect", sys.argv[1]]
try:
    main()
finally:
    assert not {"fsspec", "aiohttp"} & set(sys.modules), "imported"
"""


def test_local_files_do_not_import_fsspec(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", a=np.arange(3))
    argv = [sys.executable, "-c", _LOCAL, str(tmp_path / "m.npz")]
    run = subprocess.run(argv, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "a  int64 3" in run.stdout


# What changes ------------------------------------------------------------------------------------------------------


def test_a_model_that_is_opened_again_is_the_new_one(memory: Any, web: Served) -> None:
    for n in range(2):
        for name, data in model({"a": np.full(5 + n, n)}).items():
            memory.pipe_file(f"/new/{name}", data)
            web.files[name] = data
        for url in ("memory://new/m.safetensors", f"{web.url}/m.safetensors"):
            with wp.open(url) as source:
                assert same(source.read("a"), np.full(5 + n, n))


def test_a_source_that_changes_while_it_is_read(memory: Any, web: Served, tmp_path: Path) -> None:
    old, new = model({"a": np.zeros(1 << 18)}), model({"a": np.ones(1 << 18)})
    mapping = {"weightport": 1, "rules": [{"from": "a", "to": "b"}]}

    def change(*_: Any) -> None:
        web.files = dict(new)
        for name, data in new.items():
            memory.pipe_file(f"/c/{name}", data)

    for url in ("memory://c/m.safetensors", f"{web.url}/m.safetensors"):
        web.files = dict(old)
        for name, data in old.items():
            memory.pipe_file(f"/c/{name}", data)
        with pytest.raises(FormatError) as caught:
            wp.transfer(url, None, mapping, out=tmp_path / "o.safetensors", on_plan=change)
        assert str(caught.value) == f"{url}: the file changed while it was read; run it again when nothing writes to it"
        assert os.listdir(tmp_path) == []


def test_an_archive_that_changes(tmp_path: Path, memory: Any) -> None:
    def archive(value: int) -> None:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as file:
            for name, data in model({"a": np.full((1 << 18) + value, value)}).items():
                file.writestr(name, data)
        memory.pipe_file("/a.zip", out.getvalue())

    mapping = {"weightport": 1, "rules": [{"from": "a", "to": "b"}]}
    url = "zip://m.safetensors::memory://a.zip"
    for n in range(2):
        archive(n)
        with wp.open(url) as source:
            assert same(source.read("a"), np.full((1 << 18) + n, n))
    with pytest.raises(FormatError, match="changed while it was read"):
        wp.transfer(url, None, mapping, out=tmp_path / "o.npz", on_plan=lambda _: archive(3))


# Nothing but what a user named -------------------------------------------------------------------------------------


def test_a_mapping_names_no_url(tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, data in model({"a": np.arange(3)}).items():
        memory.pipe_file(f"/x/{name}", data)
        (tmp_path / name).write_bytes(data)
    with wp.open("memory://x/m.safetensors"):  # so that its folder is known
        pass
    monkeypatch.chdir(tmp_path)
    for url in ("memory://x/m.safetensors", "simplecache::memory://x/m.safetensors"):
        named: dict[str, Any] = {
            "weightport": 1,
            "sources": {"o": {"path": url}},
            "rules": [{"from": "o/a", "to": "b"}],
        }
        where = "sources.o.path"
        hint = "say it where the transfer is started: --source NAME=URL, or sources={NAME: URL}"
        with pytest.raises(Error) as caught:
            wp.transfer("m.safetensors", None, named, out="o.npz")
        assert str(caught.value) == f"{where}: {url!r} is a URL, which a mapping may not name; {hint}"
    named["sources"]["o"] = {}
    wp.transfer(
        "m.safetensors", None, {**named, "ignore": ["a"]}, out="o.npz", sources={"o": "memory://x/m.safetensors"}
    )
    vocab = {"from": "memory://x/m.safetensors", "to": "memory://x/m.safetensors"}
    words = {"weightport": 1, "rules": [{"from": "a", "to": "b", "vocab": vocab}]}
    with pytest.raises(Error, match="is a URL, which a mapping may not name"):
        wp.load_mapping(words)


@pytest.mark.parametrize("inside", ["memory://other/m.ckpt", "../other/m.ckpt", "/other/m.ckpt", "LOCAL"])
def test_a_state_file_leads_nowhere_else(inside: str, memory: Any, tmp_path: Path) -> None:
    for name, data in model({"a": np.arange(3)}, ".ckpt").items():
        memory.pipe_file(f"/other/{name}", data)
        (tmp_path / name).write_bytes(data)
    with wp.open("memory://other/m.ckpt"):
        pass
    inside = str(tmp_path / "m.ckpt") if inside == "LOCAL" else inside
    memory.pipe_file("/here/checkpoint", f'model_checkpoint_path: "{inside}"\n'.encode())
    with pytest.raises(FormatError, match=r"the latest checkpoint .* is not there"):
        wp.open("memory://here")


@pytest.mark.parametrize("shard", ["memory://x/m.safetensors", "../x/m.safetensors", "/x/m.safetensors"])
def test_an_index_names_no_url(shard: str, memory: Any) -> None:
    for name, data in model({"a": np.arange(3)}).items():
        memory.pipe_file(f"/x/{name}", data)
    with wp.open("memory://x/m.safetensors"):
        pass
    memory.pipe_file("/y/m.safetensors.index.json", f'{{"weight_map": {{"a": "{shard}"}}}}'.encode())
    with pytest.raises(FormatError), wp.open("memory://y/m.safetensors.index.json") as source:
        source.read("a")


@pytest.mark.parametrize("location", ["memory://x/data", "../x/data", "/x/data", "https://host/data"])
def test_a_model_of_onnx_names_no_url(location: str, memory: Any, tmp_path: Path) -> None:
    from tests.formats import _onnx

    values = np.arange(4, dtype=np.float32)
    entries = _onnx.field(13, _onnx.field(1, b"location") + _onnx.field(2, location.encode()))
    held = _onnx.tensor("a", 1, (4,), entries + _onnx.field(14, 1))
    path = _onnx.written(tmp_path, _onnx.model(_onnx.graph(held)))
    memory.pipe_file("/x/data", values.tobytes())
    memory.pipe_file("/y/m.onnx", Path(path).read_bytes())
    with wp.open("memory://y/m.onnx") as source, pytest.raises(FormatError, match=r"out of the folder|not there"):
        source.read("a")


def test_files_that_are_not_trusted_are_downloaded_for_the_process_that_reads_them(
    web: Served, caplog: pytest.LogCaptureFixture
) -> None:
    arrays = {"a": np.arange(3, dtype=np.float32)}
    web.files = model(arrays, ".h5")
    with wp.open(f"{web.url}/m.h5", untrusted=True) as source:
        assert same(source.read("a"), arrays["a"])
    what = "is given to another process, for which it has to be downloaded whole"
    assert [r.getMessage().partition(" (")[0] for r in caplog.records] == [f"{web.url}/m.h5: {what}"]


def test_orbax_that_is_not_trusted_is_local(memory: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = READERS["orbax"](tmp_path_factory.mktemp("orbax"))
    for name, data in contents(Path(made.path)).items():
        memory.pipe_file(f"/o/m/{name}", data)
    with pytest.raises(FormatError, match="is not trusted, and such a checkpoint of Orbax is read from a local path"):
        wp.open("memory://o/m", untrusted=True)
