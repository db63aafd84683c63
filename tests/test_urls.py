"""Commands and transfers by URL: what they do by path, from elsewhere to elsewhere."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.cli.command import weightport
from tests.formats._arrays import same
from tests.formats.test_contract import READERS
from tests.serving import Served, in_memory, serving
from tests.support import FIXTURES, need
from weightport.errors import Error, RefusedError
from weightport.formats import _remote

fsspec = need("fsspec")
SEED = FIXTURES / "a_seed_char_lstm"
MAPPING = """
weightport: 1
rules:
  - {from: {layout: lstm.scoped-gates, scope: LSTMcell}, to: {layout: lstm.keras, scope: lstm}, as: constant}
  - {from: softmax_w, to: logits/kernel}
  - {from: softmax_b, to: logits/bias}
"""
MODEL = "memory://seed/model.ckpt"


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The char LSTM in memory, and an empty folder with its mapping to work in."""
    monkeypatch.chdir(tmp_path)
    Path("m.yaml").write_text(MAPPING)
    with in_memory(monkeypatch) as fs:
        for file in SEED.glob("model.ckpt.*"):
            fs.pipe_file(f"/seed/{file.name}", file.read_bytes())
        yield fs


@pytest.fixture
def web() -> Iterator[Served]:
    need("aiohttp")
    with serving({f.name: f.read_bytes() for f in SEED.glob("model.ckpt.*")}) as served:
        yield served


def test_inspect(web: Served) -> None:
    local = weightport("inspect", SEED / "model.ckpt", "--json").json
    for url in (MODEL, f"{MODEL}.index", "tf-checkpoint:" + MODEL, f"{web.url}/model.ckpt", f"{web.url}/"):
        assert weightport("inspect", url, "--json").json == local
    assert weightport("inspect", MODEL).out.startswith(f"{MODEL}: tf-checkpoint, 14 tensors, 34.3 kB\n")


def test_a_transfer_gives_the_same_bytes(web: Served) -> None:
    for suffix in (".npz", ".safetensors", ".h5", ".ckpt"):
        weightport("transfer", SEED / "model.ckpt", "-m", "m.yaml", "-o", f"a{suffix}")
        for n, url in enumerate((MODEL, f"{web.url}/model.ckpt")):
            weightport("transfer", url, "-m", "m.yaml", "-o", f"b{n}{suffix}")
            ends = (".index", ".data-00000-of-00001") if suffix == ".ckpt" else ("",)
            for end in ends:
                assert Path(f"b{n}{suffix}{end}").read_bytes() == Path(f"a{suffix}{end}").read_bytes()


def test_every_command() -> None:
    weightport("transfer", MODEL, "-m", "m.yaml", "-o", "memory://out/o.npz")
    out = "memory://out/o.npz"
    assert weightport("verify", MODEL, out, "-m", "m.yaml", "--json").json["equal"] is True
    assert weightport("diff", out, out, "--json").json
    assert weightport("suggest", MODEL, out).out.startswith("weightport: 1")
    weightport("lint", "m.yaml", "--source", MODEL, "--target", out)
    weightport("report", MODEL, out, "-m", "m.yaml", "-o", "r.html")
    assert MODEL in Path("r.html").read_text()
    weightport("transfer", MODEL, out, "-m", "m.yaml", "-o", "kept.npz", "--dry-run")
    weightport("transfer", out, MODEL, "-m", "m.yaml", "--reverse", "-o", "back.ckpt")
    with wp.open("back.ckpt") as back, wp.open(MODEL) as seed:
        assert all(same(back.read(name), seed.read(name)) for name in seed.specs())
    assert weightport("transfer", "memory://gone/m.npz", "-m", "m.yaml", "-o", "n.npz", code=1).told == [
        "memory://gone/m.npz: no such file or checkpoint",
        "1 problem; nothing was written",
    ]
    assert not Path("n.npz").exists()


def test_locks_and_digests(memory: Any, web: Served) -> None:
    digest = wp.lock(SEED / "model.ckpt", "m.yaml", path="local.lock")
    wp.lock(MODEL, "m.yaml")
    assert Path("m.lock").read_text() == Path(digest).read_text()
    weightport("transfer", f"{web.url}/model.ckpt", "-m", "m.yaml", "-o", "o.npz", "--locked")
    told = weightport("transfer", MODEL, "-m", "m.yaml", "-o", "p.npz", "--expect-sha256", "0" * 64, code=1).told
    assert told[0].startswith(f"{MODEL}: its SHA-256 is ")
    memory.pipe_file("/seed/model.ckpt.data-00000-of-00001", bytes(40_000))
    told = weightport("transfer", MODEL, "-m", "m.yaml", "-o", "p.npz", "--locked", code=1).told
    assert "the SHA-256 of the source is" in told[0]
    assert not Path("p.npz").exists()


def test_where_values_came_from_is_told_without_secrets(web: Served) -> None:
    web.needs = "SECRET"
    weightport("transfer", "tf-checkpoint:" + web.url.replace("//", "//user:SECRET@") + "/model.ckpt", "-m", "m.yaml",
               "-o", "o.safetensors", code=1)  # fmt: skip
    web.needs = "Basic"
    url = web.url.replace("//", "//user:SECRET@") + "/model.ckpt"
    ran = weightport("transfer", url, "-m", "m.yaml", "-o", "o.safetensors")
    assert "SECRET" not in ran.out + ran.err
    raw = Path("o.safetensors").read_bytes()
    assert b'"weightport.source":"model.ckpt"' in raw.replace(b": ", b":")
    assert b"SECRET" not in raw


def test_further_sources_are_named_by_the_user(web: Served) -> None:
    mapping = {
        "weightport": 1,
        "sources": {"more": {}},
        "rules": [{"from": "more/softmax_b", "to": "b"}],
        "ignore": ["**"],
    }
    wp.transfer(MODEL, None, mapping, out="o.npz", sources={"more": f"{web.url}/model.ckpt"})
    with wp.open("o.npz") as out, wp.open(MODEL) as seed:
        assert same(out.read("b"), seed.read("softmax_b"))


def test_other_processes_open_the_url_themselves(web: Served) -> None:
    web.needs = "Basic"
    url = web.url.replace("//", "//user:SECRET@") + "/model.ckpt"
    wp.transfer(SEED / "model.ckpt", None, "m.yaml", out="a.safetensors")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        wp.transfer(url, None, "m.yaml", out="o.safetensors", executor=pool)
    assert Path("o.safetensors").read_bytes() == Path("a.safetensors").read_bytes()


def test_live_models(web: Served) -> None:
    torch = need("torch")
    module = torch.nn.Linear(32, 27)
    rules = [{"from": "softmax_w", "to": "weight", "rearrange": "i o -> o i"}, {"from": "softmax_b", "to": "bias"}]
    wp.transfer(f"{web.url}/model.ckpt", module, {"weightport": 1, "rules": rules, "ignore": ["**"]})
    with wp.open(MODEL) as seed:
        assert np.array_equal(module.weight.detach().numpy().T, seed.read("softmax_w"))


# Destinations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["o.npz", "o.safetensors", "o.h5", "o.ckpt", "o.safetensors.index.json", "o.pt"])
def test_what_is_written_by_url_is_what_is_written_here(memory: Any, out: str) -> None:
    wp.transfer(MODEL, None, "m.yaml", out=f"here-{out}")
    result = wp.transfer(MODEL, None, "m.yaml", out=f"memory://new/{out}")
    assert result.path == f"memory://new/{out}"
    with wp.open(result.path) as remote, wp.open(f"here-{out}") as local:
        assert dict(remote.specs()) == dict(local.specs())
        assert all(same(remote.read(name), local.read(name)) for name in local.specs())
    if out.endswith((".npz", ".safetensors", ".h5", ".pt")):
        assert memory.cat_file(f"/new/{out}") == Path(f"here-{out}").read_bytes()


def test_formats_of_destinations() -> None:
    wp.transfer(MODEL, None, "m.yaml", out="npz:memory://new/a")
    wp.transfer(MODEL, None, "m.yaml", out="memory://new/b", format="safetensors")
    wp.transfer(MODEL, None, "m.yaml", out=f"file://{Path.cwd()}/c.npz")
    assert [wp.open(p).format for p in ("memory://new/a", "memory://new/b", "c.npz")] == ["npz", "safetensors", "npz"]


def test_the_old_file_stays_until_the_new_one_is_complete(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe_file("/new/o.npz", b"old")
    bad = {"weightport": 1, "rules": [{"from": "softmax_b", "to": "b"}]}
    with pytest.raises(Error):
        wp.transfer(MODEL, None, bad, out="memory://new/o.npz")
    assert memory.cat_file("/new/o.npz") == b"old"

    def fails(*_: Any) -> None:
        raise PermissionError("SECRET")

    with monkeypatch.context() as patch:
        patch.setattr(_remote.shutil, "copyfileobj", fails)
        with pytest.raises(Error) as caught:
            wp.transfer(MODEL, None, "m.yaml", out="memory://new/o.npz")
    assert str(caught.value) == "memory://new/o.npz: access denied; credentials are those that fsspec finds"
    assert memory.cat_file("/new/o.npz") == b"old"
    wp.transfer(MODEL, None, "m.yaml", out="memory://new/o.npz", dry_run=True)
    assert memory.cat_file("/new/o.npz") == b"old"
    wp.transfer(MODEL, None, "m.yaml", out="memory://new/o.npz")
    with wp.open("memory://new/o.npz") as new:
        assert len(new.specs()) == 5


def test_several_files_do_not_replace_others(memory: Any) -> None:
    wp.transfer(MODEL, None, "m.yaml", out="memory://new/o.ckpt")
    order = [name for name in memory.store if name.startswith("/new/")]
    names = ["o.ckpt.data-00000-of-00001", "o.ckpt.index.weightport.json", "o.ckpt.index"]
    assert order == [f"/new/{name}" for name in names], "the index last"
    before = {name: memory.cat_file(name) for name in order}
    with pytest.raises(RefusedError) as caught:
        wp.transfer(MODEL, None, {"weightport": 1, "rules": [{"from": "softmax_b", "to": "b"}], "ignore": ["**"]},
                    out="memory://new/o.ckpt")  # fmt: skip
    what = "is there, and several files cannot be replaced at once; remove it first, or write to another path"
    assert str(caught.value) == f"memory://new/o.ckpt.data-00000-of-00001: {what}"
    assert {name: memory.cat_file(name) for name in order} == before


@pytest.mark.parametrize("out", ["https://host/o.npz", "zip://o.npz::memory://a.zip"])
def test_destinations_that_cannot_be(memory: Any, out: str) -> None:
    import zipfile

    with memory.open("/a.zip", "wb") as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x", b"")
    with pytest.raises(RefusedError, match=r"cannot be written by URL; write to a local path, and copy it there$"):
        wp.transfer(MODEL, None, "m.yaml", out=out)


def test_a_source_is_not_written_over() -> None:
    with pytest.raises(RefusedError, match=r"is memory://seed/model\.ckpt itself, which is only read"):
        wp.transfer(MODEL, None, {"weightport": 1, "rules": [{"from": "{x**}", "to": "{x**}"}]}, out=MODEL)


def test_links_are_for_local_files() -> None:
    rules = {"weightport": 1, "rules": [{"from": "{x**}", "to": "new/{x**}"}]}
    with pytest.raises(RefusedError, match="lies elsewhere; leave out --link: it is copied then"):
        wp.transfer(MODEL, None, rules, out="o.ckpt", link=True)


def test_targets_give_their_structure(memory: Any) -> None:
    np.savez("s.npz", b=np.ones(2, np.float32))
    made = READERS["keras"](Path.cwd())
    memory.pipe_file("/t/m.keras", Path(made.path).read_bytes())
    mapping = {"weightport": 1, "rules": [{"from": "b", "to": "two/bias"}], "keep": ["**"]}
    wp.transfer("s.npz", "memory://t/m.keras", mapping, out="o.keras")
    wp.transfer("s.npz", made.path, mapping, out="p.keras")
    assert Path("o.keras").read_bytes() == Path("p.keras").read_bytes()
    for file in (SEED / "saved_model").rglob("*"):
        if file.is_file():
            memory.pipe_file(f"/t/sm/{file.relative_to(SEED / 'saved_model').as_posix()}", file.read_bytes())
    with wp.open(SEED / "saved_model") as seed:
        names = [n for n, s in seed.specs().items() if s.role == "weight"]
    kept = {"weightport": 1, "rules": [{"from": n, "to": n} for n in names], "keep": ["**"]}
    wp.transfer(MODEL, "memory://t/sm", kept, out="tf-saved-model:o_sm")
    wp.transfer(SEED / "model.ckpt", SEED / "saved_model", kept, out="tf-saved-model:p_sm")
    files = {f.relative_to("p_sm"): f.read_bytes() for f in Path("p_sm").rglob("*") if f.is_file()}
    assert {f.relative_to("o_sm"): f.read_bytes() for f in Path("o_sm").rglob("*") if f.is_file()} == files
