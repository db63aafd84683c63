"""PyTorch's files: PyTorch writes them, weightport reads them, and the values are the same bit for bit."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import weightport as wp
from tests.cli.command import weightport
from tests.formats._arrays import EXTRA, NUMPY, same
from tests.formats._torch import array, opened, pickled, repacked, save, tensor_pickle
from tests.support import need
from weightport.errors import BudgetExceeded, FormatError, TensorNotFound
from weightport.formats import _io, torch_file
from weightport.formats.torch_file import open_source
from weightport.tensors import Budget

torch = need("torch")


def checked(source: Any, expected: dict[str, Any]) -> None:
    """Names in order, and values bit for bit."""
    with source:
        assert list(source.specs()) == list(expected)
        for name, tensor in expected.items():
            want = array(tensor)
            spec = source.specs()[name]
            assert (spec.shape, spec.dtype, spec.nbytes) == (want.shape, want.dtype, want.nbytes), name
            assert same(source.read(name), want), name


def of_every_dtype() -> dict[str, Any]:
    """Tensors of every dtype that numpy or ml_dtypes has, of random bits."""
    found = {}
    generator = torch.Generator().manual_seed(3)
    for name in [*NUMPY, "complex128", *EXTRA]:
        dtype = getattr(torch, name)
        raw = torch.randint(0, 2 if name == "bool" else 256, (6 * dtype.itemsize,), generator=generator)
        found[f"of.{name}"] = raw.to(torch.uint8).view(dtype).reshape(2, 3)
    return found


SAVED: list[dict[str, Any]] = [{}, {"legacy": True}, {"pickle_protocol": 4}, {"legacy": True, "pickle_protocol": 5}]


@pytest.mark.parametrize("options", SAVED, ids=str)
def test_every_dtype(tmp_path: Path, options: dict[str, Any]) -> None:
    tensors = of_every_dtype()
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4), "déjà/vu": torch.arange(7), "": torch.ones(1)}
    nan = torch.tensor([0x7FA00001, 0x7F800000, -1], dtype=torch.int32).view(torch.float32)  # a signalling NaN first
    tensors["nan"] = nan
    path = save(tensors, tmp_path / "model.pt", **options)
    checked(open_source(path), tensors)
    assert wp.open(path).format == "torch"


@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_dict_has_its_keys(tmp_path: Path, legacy: bool) -> None:
    model = torch.nn.Sequential(torch.nn.LSTM(3, 4, 2, bidirectional=True), torch.nn.BatchNorm1d(2))
    checked(opened(model.state_dict(), tmp_path / "m.pt", legacy=legacy), model.state_dict())
    with wp.open(tmp_path / "m.pt") as source:
        (cell,) = source.cells()
        assert (cell.scope, cell.layout.name, cell.layers, cell.directions) == (
            "0", "lstm.torch", 2, ("forward", "backward"),
        )  # fmt: skip
        assert source.facts(cell.names) == {}


@pytest.mark.parametrize("legacy", [False, True])
def test_views_and_shared_storages(tmp_path: Path, legacy: bool) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "base": base,
        "tied": base,
        "row": base[1],
        "turned": base.permute(2, 0, 1),
        "column": base[:, 1, ::2],
        "repeated": base[0, :, :1].expand(3, 5),
        "windows": torch.arange(6.0).unfold(0, 3, 1),
        "conjugate": torch.tensor([1 + 2j, 3 - 4j]).conj(),
        "negative": torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
        "parameter": torch.nn.Parameter(base[0].clone()),
        "none": base[:0],
    }
    checked(opened(tensors, tmp_path / "m.pt", legacy=legacy), tensors)
    storages = sum(n.count("/data/") for n in zipfile.ZipFile(tmp_path / "m.pt").namelist()) if not legacy else 0
    assert storages in (0, 5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_partial_reads_are_slices(tmp_path: Path, draw: st.DataObject) -> None:
    shape = draw.draw(st.lists(st.integers(0, 5), max_size=4))
    tensor = torch.randn(shape).permute(draw.draw(st.permutations(range(len(shape)))))
    index = []
    for dim in tensor.shape[: draw.draw(st.integers(0, len(shape)))]:
        low = draw.draw(st.integers(0, dim))
        index.append(slice(low, draw.draw(st.integers(low, dim)), draw.draw(st.sampled_from([None, 1, 2, 3]))))
    want = array(tensor)[tuple(index)]
    stored = save({"a": torch.ones(3), "x": tensor}, tmp_path / "stored.pt")
    deflated = repacked(stored, tmp_path / "deflated.pt", zipfile.ZIP_DEFLATED)
    for path in (stored, deflated, save({"x": tensor}, tmp_path / "legacy.pt", legacy=True)):
        with open_source(path) as source:
            assert same(source.read("x", tuple(index)), np.array(want, order="C"))


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_training_checkpoint(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.1))
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, prior=torch.ones(2)),
        "history": [{"loss": torch.tensor(0.5)}, None, (torch.tensor(1), "x")],
        "rng_state": torch.get_rng_state(),
    }
    with opened(checkpoint, tmp_path / "m.pt") as source:
        roles = {name: spec.role for name, spec in source.specs().items()}
        assert roles == {
            "model.weight": "weight",
            "model.bias": "weight",
            "optimizer.state.0.step": "slot",
            "optimizer.state.0.exp_avg": "slot",
            "optimizer.state.0.exp_avg_sq": "slot",
            "optimizer.state.1.step": "slot",
            "optimizer.state.1.exp_avg": "slot",
            "optimizer.state.1.exp_avg_sq": "slot",
            "optimizer.param_groups.0.lr": "optimizer",
            "args.prior": "weight",
            "history.0.loss": "weight",
            "history.2.0": "weight",
            "rng_state": "counter",
        }
        assert same(source.read("model.weight"), array(model.weight))
    rules = [{"from": "{name}", "to": "layer/{name}"}]
    mapping = {"weightport": 1, "source": {"scope": "model"}, "rules": rules}
    with pytest.raises(wp.PlanError) as caught:
        wp.transfer(tmp_path / "m.pt", None, {**mapping, "ignore": ["args.*", "history.**"]}, out=tmp_path / "o.npz")
    assert [problem.hint for problem in caught.value.problems] == [
        "leave behind what is not wanted: ignore: ['optimizer.state.**']",
        "leave behind what is not wanted: ignore: ['optimizer.param_groups.0.lr']",
        "leave behind what is not wanted: ignore: ['rng_state']",
    ]
    mapping["ignore"] = ["optimizer.**", "args.*", "history.**", "rng_state"]
    wp.transfer(tmp_path / "m.pt", None, mapping, out=tmp_path / "o.npz")
    with wp.open(tmp_path / "o.npz") as written:
        assert list(written.specs()) == ["layer/weight", "layer/bias"]


def test_lightning_s_checkpoint(tmp_path: Path) -> None:
    checkpoint = {
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {"encoder.weight": torch.ones(2)},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [],
    }
    with opened(checkpoint, tmp_path / "last.ckpt") as source:
        assert {name: spec.role for name, spec in source.specs().items()} == {
            "state_dict.encoder.weight": "weight",
            "callbacks.ModelCheckpoint{'monitor': None}.best_model_score": "optimizer",
            "optimizer_states.0.state.0.exp_avg": "slot",
        }


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = torch.nn.RNN(2, 3, nonlinearity="relu", batch_first=True)
        self.gru = torch.nn.GRU(3, 2, bias=False)
        self.head = torch.nn.Linear(2, 2)
        self.tied = torch.nn.Linear(2, 2)
        self.tied.weight = self.head.weight
        self.lists = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.zeros(1))])
        self.register_buffer("shift", torch.ones(2))
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.plain = torch.arange(3.0)
        self.parent = [self]  # a module that reaches itself

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tied(self.gru(self.rnn(x)[0])[0]) + self.shift + self.scratch + self.plain[:2]


@pytest.mark.parametrize("options", SAVED, ids=str)
def test_a_module_that_was_saved_whole(tmp_path: Path, options: dict[str, Any]) -> None:
    net = Net()
    checked(opened(net, tmp_path / "net.pt", **options), net.state_dict())
    with wp.open(tmp_path / "net.pt") as source:
        rnn, gru = source.cells()
        assert source.facts(rnn.names) == {
            "class": "RNN", "units": 3, "num_layers": 1, "bidirectional": False, "proj_size": 0, "use_bias": True,
            "batch_first": True, "activation": "relu",
        }  # fmt: skip
        assert source.facts(gru.names)["use_bias"] is False
        assert source.facts(gru.names)["reset_after"] is True
        assert source.facts([*rnn.names, *gru.names]) == source.facts(["head.weight"]) == {}


def test_other_roots(tmp_path: Path) -> None:
    checked(opened(torch.ones(2), tmp_path / "weights.pt"), {"weights": torch.ones(2)})
    checked(opened([torch.ones(2), 3, torch.zeros(1)], tmp_path / "l.pt"), {"0": torch.ones(2), "2": torch.zeros(1)})
    odd = {7: torch.ones(1), (1, 2): torch.ones(2), None: {0.5: torch.ones(3)}}
    checked(opened(odd, tmp_path / "k.pt"), {"7": torch.ones(1), "1": torch.ones(2), "2.0": torch.ones(3)})
    checked(opened({"nothing": 1}, tmp_path / "n.pt"), {})
    checked(opened(3, tmp_path / "i.pt"), {})
    storage = torch.arange(3.0).untyped_storage()
    checked(opened({"s": storage}, tmp_path / "s.pt"), {"s": torch.arange(3.0).view(torch.uint8)})


def test_an_optimizer_that_was_saved_whole(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with opened(optimizer, tmp_path / "o.pt") as source:
        assert {name: spec.role for name, spec in source.specs().items()} == {
            "state.0.momentum_buffer": "slot",
            "state.1.momentum_buffer": "slot",
            "param_groups.0.params.0": "optimizer",
            "param_groups.0.params.1": "optimizer",
        }


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    same_one = torch.ones(2)
    checked(opened({"a": {"b": same_one}, "a.b": same_one}, tmp_path / "m.pt"), {"a.b": same_one})
    with pytest.raises(FormatError) as caught:
        opened({"a": {"b": torch.ones(2)}, "a.b": torch.ones(3)}, tmp_path / "m.pt")
    assert str(caught.value) == f"{tmp_path / 'm.pt'}: tensor 'a.b': two tensors have this name"


# --- what has no plain values -----------------------------------------------------------------------------------------


class Wrapped(torch.Tensor):
    """A tensor without a storage of its own, as libraries of quantization have them."""

    @staticmethod
    def __new__(cls, inner: Any) -> Any:
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(function)

    def __repr__(self) -> str:
        return "Wrapped"


@pytest.mark.filterwarnings("ignore")  # PyTorch deprecates its quantized tensors and finds sparse ones young
@pytest.mark.parametrize("legacy", [False, True])
def test_what_cannot_be_read_is_named_and_the_rest_moves(tmp_path: Path, legacy: bool) -> None:
    eye = torch.eye(2)
    odd: dict[str, Any] = {
        "quantized": torch.quantize_per_tensor(eye, 0.1, 3, torch.qint8),
        "channels": torch.quantize_per_channel(eye, torch.ones(2), torch.zeros(2), 0, torch.quint8),
        "coo": eye.to_sparse(),
        "csr": eye.to_sparse_csr(),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "meta": torch.ones(3, device="meta"),
        "half_complex": torch.ones(2, dtype=torch.complex32),
        "packed": torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        "wrapped": Wrapped(torch.ones(2)),
        "lazy": torch.nn.LazyLinear(3).weight,
    }
    path = save({**odd, "fine": eye}, tmp_path / "m.pt", legacy=legacy)
    with open_source(path) as source:
        assert {n: (s.unread, s.shape, s.dtype_name) for n, s in source.specs().items() if n != "fine"} == {
            "quantized": ("quantized (qint8, per tensor affine)", (2, 2), "object"),
            "channels": ("quantized (quint8, per channel affine)", (2, 2), "object"),
            "coo": ("sparse", (2, 2), "float32"),
            "csr": ("sparse", (2, 2), "float32"),
            "nested": ("nested: several tensors of different shapes", (5,), "float32"),
            "meta": ("on the meta device, without values", (3,), "float32"),
            "half_complex": ("complex numbers of half precision (complex32)", (2,), "object"),
            "packed": ("packed below a byte (float4_e2m1fn_x2)", (4,), "object"),
            "wrapped": ("a Wrapped of other tensors", (2,), "float32"),
            "lazy": ("not initialized: of a lazy module that has not run yet", (), "float32"),
        }
        with pytest.raises(FormatError) as caught:
            source.read("coo")
        assert str(caught.value) == f"{path}: tensor 'coo': cannot be read: sparse"
    rules = {"weightport": 1, "rules": [{"from": "fine", "to": "w"}]}
    wp.transfer(path, None, {**rules, "ignore": list(odd)}, out=tmp_path / "o.npz")
    with pytest.raises(wp.PlanError, match=r"tensor 'meta' of .* cannot be read: on the meta device, without values"):
        wp.transfer(path, None, {"weightport": 1, "rules": [{"from": "{x}", "to": "{x}"}]}, out=tmp_path / "o.npz")


def test_inspect_says_what_cannot_be_read(tmp_path: Path) -> None:
    path = save({"w": torch.ones(2), "s": torch.eye(2).to_sparse()}, tmp_path / "m.pt")
    assert "s  float32 2×2 (sparse)" in weightport("inspect", path, "--stats").out
    tensors = weightport("inspect", path, "--json").json["tensors"]
    assert [tensor.get("unread") for tensor in tensors] == [None, "sparse"]


# --- TorchScript and torch.export -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
@pytest.mark.parametrize("made", ["scripted", "traced"])
def test_torchscript(tmp_path: Path, made: str) -> None:
    net = Net()
    net.parent = None
    script = torch.jit.script(net) if made == "scripted" else torch.jit.trace(net, torch.ones(2, 1, 2))
    torch.jit.save(script, tmp_path / "script.pt")
    with wp.open(tmp_path / "script.pt") as source:
        weights = {name: spec for name, spec in source.specs().items() if spec.role == "weight"}
        assert set(weights) == {*net.state_dict(), "scratch"}  # all buffers are persistent there
        for name, tensor in net.state_dict().items():
            assert same(source.read(name), array(tensor))
        beside = {name: source.read(name).tolist() for name, s in source.specs().items() if s.role == "constant"}
        assert beside == {"plain" if made == "scripted" else "CONSTANTS.c0": [0, 1, 2]}
        rnn, gru = source.cells()
        assert source.facts(rnn.names).get("activation") == ("relu" if made == "scripted" else None)
        assert source.facts(gru.names)["reset_after"] is True


def test_torch_export(tmp_path: Path) -> None:
    net = Net()
    net.parent = None
    net.rnn = torch.nn.Linear(2, 3)
    net.forward = lambda x: net.tied(net.rnn(x)[..., :2]) + net.shift + net.scratch + net.plain[:2]
    exported = torch.export.export(net, (torch.ones(1, 2),))
    torch.export.save(exported, tmp_path / "net.pt2")
    with wp.open(tmp_path / "net.pt2") as source:
        weights = [name for name, spec in source.specs().items() if spec.role == "weight"]
        assert set(weights) == set(exported.state_dict)
        for name in weights:
            assert same(source.read(name), array(exported.state_dict[name])), name
        assert same(source.read("plain"), array(net.plain))
        assert source.specs()["plain"].role == source.specs()["scratch"].role == "constant"
    table = "data/weights/model_weights_config.json"
    for content in (b"[]", b'{"config": {"w": {"tensor_meta": {"dtype": 99}}}}', b'{"config": {"w": 1}}'):
        path = repacked(str(tmp_path / "net.pt2"), tmp_path / "b.pt2", **{table: content})
        with pytest.raises(FormatError) as caught:
            open_source(path)
        assert str(caught.value) == (
            f"{path}: corrupt: net/{table}: the table of weights is not as torch.export writes it"
        )
    both = [f"data/{kind}/model_{kind}_config.json" for kind in ("weights", "constants")]
    with zipfile.ZipFile(tmp_path / "net.pt2") as archive:
        weights = archive.read(f"net/{table}")
    path = repacked(str(tmp_path / "net.pt2"), tmp_path / "b.pt2", **dict.fromkeys(both, weights))
    with pytest.raises(FormatError, match=r"b\.pt2: tensor '[a-z_.]+': two tensors have this name$"):
        open_source(path)
    path = repacked(str(tmp_path / "net.pt2"), tmp_path / "b.pt2", archive_format=b"aoti")
    with pytest.raises(FormatError, match="an archive of the format b'aoti', not of pt2"):
        open_source(path)


# --- how it lies in the file ------------------------------------------------------------------------------------------


def test_big_endian(tmp_path: Path) -> None:
    tensors = {n: t for n, t in of_every_dtype().items() if t.dtype not in torch.storage._new_dtypes()}
    path = save(tensors, tmp_path / "little.pt")
    swapped = {f"data/{n}": array(t).astype(array(t).dtype.newbyteorder(">")).tobytes() if array(t).dtype.kind != "V"
               else array(t).view(np.uint16).byteswap().tobytes() for n, t in enumerate(tensors.values())}  # fmt: skip
    big = repacked(path, tmp_path / "big.pt", byteorder=b"big", **swapped)
    theirs = torch.load(big)
    with open_source(big) as source:
        for name in tensors:
            assert same(source.read(name), array(theirs[name])), name
    with pytest.raises(FormatError, match=r"corrupt: the byte order b'middle'"):
        open_source(repacked(path, tmp_path / "odd.pt", byteorder=b"middle"))


def test_checksums(tmp_path: Path) -> None:
    path = save({"a": torch.arange(4.0), "b": torch.arange(6.0).reshape(2, 3).T}, tmp_path / "m.pt")
    whole = Path(path).read_bytes()
    at = whole.index(np.arange(4, dtype="<f4").tobytes())
    Path(path).write_bytes(whole[: at + 5] + b"\1" + whole[at + 6 :])
    with open_source(path) as source:
        for index in (None, (slice(3, 4),), (slice(0, 1),)):
            with pytest.raises(FormatError, match=r"tensor 'a' at byte \d+: corrupt: the member's CRC is"):
                source.read("a", index)
        assert source.read("b").shape == (3, 2)
    torch.serialization.set_crc32_options(False)
    try:
        without = {"a": torch.arange(4.0)}
        checked(opened(without, tmp_path / "m.pt"), without)  # written without checksums: none are there to check
    finally:
        torch.serialization.set_crc32_options(True)


def test_opening_reads_the_directory_and_the_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    pread, preadv = os.pread, os.preadv
    monkeypatch.setattr(_io.os, "pread", lambda fd, n, at: read.append(n) or pread(fd, n, at))
    monkeypatch.setattr(_io.os, "preadv", lambda fd, b, at: read.append(sum(map(len, b))) or preadv(fd, b, at))
    path = save({f"w{n}": torch.zeros(1 << 16) for n in range(20)}, tmp_path / "m.pt")
    with open_source(path) as source:
        assert sum(read) < 20_000
        read.clear()
        source.read("w3")
        assert sum(read) < (1 << 18) + 1_000
    legacy = tmp_path / "legacy.pt"
    save({"w": torch.zeros(4)}, legacy, legacy=True)
    content = legacy.read_bytes()
    count = 5 << 28  # 5 GB
    old, new = b"K\x04N", b"J" + count.to_bytes(4, "little") + b"N"
    small = content.replace(old, new).replace((4).to_bytes(8, "little"), count.to_bytes(8, "little"))
    assert content.count(old) == 1
    legacy.write_bytes(small[:-16])
    os.truncate(legacy, len(small) - 16 + 4 * count)  # a hole, that takes no room
    read.clear()
    with open_source(str(legacy)) as source:
        assert sum(read) < 3 << 20
        assert source.read("w").tolist() == [0.0] * 4


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tensor_pickle("7"), "tensor 'm': the archive has no member 'data/7'"),
        (tensor_pickle(numel=5, shape=b"K\5\x85"), "its storage 'data/0' has 16 bytes, 20 are needed"),
        (tensor_pickle(numel=3), "no valid pickle: a tensor of the bytes up to 16 of a storage of 12"),
        (tensor_pickle(offset=1), "no valid pickle: a tensor of the bytes up to 20 of a storage of 16"),
        (tensor_pickle(offset=-1), "no valid pickle: an offset that is no size"),
        (tensor_pickle(numel=-4), "no valid pickle: the size of a storage that is no size"),
        (tensor_pickle(shape=b"J\xff\xff\xff\xff\x85"), "no valid pickle: a dimension that is no size"),
        (tensor_pickle(shape=b"N"), "no valid pickle: a shape that is none"),
        (tensor_pickle(shape=b"K\2K\2\x86"), "no valid pickle: a shape of 2 axes with 1 strides"),
        (tensor_pickle(shape=b"(" + b"K\1" * 70 + b"t"), "no valid pickle: a shape that is none"),
        (tensor_pickle(stride=b"\x8a\x09" + b"\xff" * 8 + b"\0\x85"), "no valid pickle: a dimension that is no size"),
        (tensor_pickle().replace(b"FloatS", b"FlootS"), "the storage type torch.FlootStorage is not known"),
        (tensor_pickle().replace(b"storage", b"starage"), "no valid pickle: a persistent id that is no storage"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(K\1tR", "no valid pickle: _rebuild_tensor_v2 of 1 arguments"),
        (b"ctorch._utils\n_rebuild_tensor_v2\nK\1R", "no valid pickle: _rebuild_tensor_v2 of no arguments"),
        (b"ctorch._utils\n_rebuild_parameter\n(K\1\x89)tR", "no valid pickle: a parameter that is no tensor"),
        (b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat33\n))\x89tR",
         "no valid pickle: the dtype torch.float33 is not known"),
        (b"X\xff", "corrupt: data.pkl ends before it is complete"),
    ],
)  # fmt: skip
def test_hostile_pickles(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.pt").write_bytes(pickled(content + b".", {"0": b"\0" * 16}))
    with pytest.raises(FormatError) as caught:
        open_source(str(tmp_path / "m.pt"))
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "m.pt"))


def test_unknown_ways_to_rebuild_a_tensor_are_named_and_left_alone(tmp_path: Path) -> None:
    content = b"}(X\1\0\0\0actorch._utils\n_rebuild_future\n)RX\1\0\0\0b" + tensor_pickle() + b"u."
    (tmp_path / "m.pt").write_bytes(pickled(content, {"0": b"\0" * 16}))
    with open_source(str(tmp_path / "m.pt")) as source:
        assert source.specs()["a"].unread == "made by _rebuild_future, which is not known"
        assert source.read("b").tolist() == [0.0] * 4
        with pytest.raises(TensorNotFound):
            source.read("c")


def test_odd_archives(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(pickled(tensor_pickle() + b".", {"../0": b""}))
    with pytest.raises(FormatError, match=r"the archive's member 'archive/data/../0' would lie outside of it"):
        open_source(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"N.")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("archive/data.pkl", b"N.")
    with pytest.raises(FormatError, match="two members of the archive have the same name"):
        open_source(str(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other/data.txt", b"")
    with pytest.raises(FormatError, match=r"is no archive of PyTorch: it has no data\.pkl"):
        open_source(str(path))
    assert not torch_file.sniff(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.replace(b"\x8a\x0a\x6c", b"\x8a\x0a\x6d"), "is no file of PyTorch: another magic number"),
        (lambda b: b.replace(b"M\xe9\3", b"M\xea\3"), "is no file of PyTorch: another version"),
        (lambda b: b[:-16] + b"\5" + b[-15:], "has 5 elements, 2 are needed"),
        (lambda b: b[:-1], "truncated or corrupt: bytes"),
    ],
)
def test_damaged_files_of_before_1_6(tmp_path: Path, change: Any, message: str) -> None:
    path = Path(save({"w": torch.ones(2)}, tmp_path / "m.pt", legacy=True))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(FormatError, match=message):
        open_source(str(path))


def test_pickles_larger_than_the_first_piece(tmp_path: Path) -> None:
    tensors = {"x" * 70_000 + str(n): torch.full((2,), float(n)) for n in range(20)}
    checked(opened(tensors, tmp_path / "m.pt", legacy=True), tensors)


def test_old_spellings(tmp_path: Path) -> None:
    """What PyTorch before 0.4 wrote: text as bytes, ordered dicts as lists, tensors built in two steps."""
    storage = b"(U\7storagectorch\nFloatStorage\nU\x010U\3cpuK\4tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"K\0K\4\x85K\1\x85tR"
    older = b"ctorch\nFloatTensor\n)\x81(" + storage + b"K\1K\3\x85K\1\x85tb"
    parameter = b"ctorch.nn.parameter\nParameter\n" + tensor + b"\x85R"
    content = b"ccollections\nOrderedDict\n](]U\1a" + b"a" + tensor + b"a" + b"]U\1ba" + older + b"a"
    content += b"]U\1ca" + parameter + b"ae\x85R."
    (tmp_path / "m.pt").write_bytes(pickled(content, {"0": np.arange(4, dtype="<f4").tobytes()}))
    with open_source(str(tmp_path / "m.pt")) as source:
        assert {n: source.read(n).tolist() for n in source.specs()} == {
            "a": [0, 1, 2, 3], "b": [1, 2, 3], "c": [0, 1, 2, 3],
        }  # fmt: skip
    beyond = older.replace(b"K\1K\3", b"K\2K\3")
    (tmp_path / "m.pt").write_bytes(pickled(beyond + b".", {"0": np.arange(4, dtype="<f4").tobytes()}))
    with pytest.raises(FormatError) as caught:
        open_source(str(tmp_path / "m.pt"))
    what = "a tensor of the bytes up to 20 of a storage of 16"
    assert str(caught.value) == f"{tmp_path / 'm.pt'}: corrupt: {what}"


# --- bombs ------------------------------------------------------------------------------------------------------------


def test_objects_that_share_and_hold_each_other_are_named_in_bounded_steps(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    doubled = tensor_pickle() + b"q\0" + b"0](h\0h\0eq\0" * 50 + b"."  # two of two of two ... of one tensor
    path.write_bytes(pickled(doubled, {"0": b"\0" * 16}))
    with pytest.raises(BudgetExceeded, match="its objects hold each other in too many ways to name them all"):
        open_source(str(path))
    empty = b"]q\0" + b"0](h\0h\0eq\0" * 5000 + b"."  # the same without a tensor is nothing to name
    path.write_bytes(pickled(empty))
    assert open_source(str(path)).specs() == {}
    deep = tensor_pickle() + b"\x85" * 100 + b"."
    path.write_bytes(pickled(deep, {"0": b"\0" * 16}))
    with pytest.raises(BudgetExceeded, match="depth: 65 asked for, at most 64 allowed"):
        open_source(str(path))
    itself = b"]q\0(h\0" + tensor_pickle() + b"e."
    path.write_bytes(pickled(itself, {"0": b"\0" * 16}))
    assert list(open_source(str(path)).specs()) == ["1"]


def test_names_that_multiply(tmp_path: Path) -> None:
    """A dict with a long key is in many others: each name has the key."""
    long = b"}q\1X" + (60_000).to_bytes(4, "little") + b"k" * 60_000 + tensor_pickle() + b"s0"
    many = b"".join(b"X\3\0\0\0" + b"%03d" % n + b"h\1" for n in range(300))
    path = tmp_path / "m.pt"
    path.write_bytes(pickled(long + b"}(" + many + b"u.", {"0": b"\0" * 16}))
    assert path.stat().st_size < 80_000
    with pytest.raises(BudgetExceeded, match=r"m\.pt: names: 16,8.*, at most 16,777,216 for a file of 6"):
        open_source(str(path))
    assert len(open_source(str(path), budget=Budget(spread=1000)).specs()) == 300


def test_budget(tmp_path: Path) -> None:
    path = save({"a": torch.zeros(2, 2), "b": torch.zeros(2)}, tmp_path / "m.pt")
    for budget in (Budget(header_bytes=100), Budget(tensors=1), Budget(rank=1), Budget(tensor_bytes=8)):
        with pytest.raises(BudgetExceeded):
            open_source(path, budget=budget)


def test_a_tensor_that_repeats_one_element_is_read_in_parts_only(tmp_path: Path) -> None:
    with opened({"w": torch.ones(1).expand(1 << 20, 1 << 20)}, tmp_path / "m.pt") as source:
        assert source.read("w", (slice(0, 1), slice(0, 2))).tolist() == [[1.0, 1.0]]
        with pytest.raises(BudgetExceeded, match="elements that are repeated to"):
            source.read("w")


# --- detection --------------------------------------------------------------------------------------------------------


def test_detection(tmp_path: Path) -> None:
    for number, options in enumerate(SAVED):
        path = save({"w": torch.ones(1)}, tmp_path / f"{number}.whatever", **options)
        assert torch_file.sniff(path)
        assert wp.open(f"torch:{path}").format == "torch"
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"w": 1}))
    assert not torch_file.sniff(str(tmp_path / "p.pkl"))
    with pytest.raises(FormatError, match="this is a pickle, which can run code when it is loaded: never loaded here"):
        wp.open(tmp_path / "p.pkl")
    with pytest.raises(FormatError, match="another magic number"):
        wp.open(f"torch:{tmp_path / 'p.pkl'}")
    assert not torch_file.sniff(str(tmp_path / "nothing"))


def test_many_tensors(tmp_path: Path) -> None:
    tensors = {f"w{n}": torch.ones(1) for n in range(3000)}
    with opened({"model": tensors}, tmp_path / "m.pt") as source:
        assert list(source.specs()) == [f"model.{name}" for name in tensors]


def test_extents_are_where_the_values_lie(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"own": torch.arange(5.0), "base": base, "part": base[1], "turned": torch.ones(2, 3).T, "none": base[:0],
               "conj": torch.ones(2, dtype=torch.complex64).conj(), "sparse": torch.eye(2).to_sparse()}  # fmt: skip
    found = {}
    for legacy in (False, True):
        path = save(tensors, tmp_path / "m.pt", legacy=legacy)
        data = Path(path).read_bytes()
        with open_source(path) as source:
            extents = {name: source.extent(name) for name in tensors}
            for name, place in extents.items():
                if place is not None:
                    values = data[place.offset : place.offset + place.nbytes]
                    assert values == array(tensors[name]).tobytes()
                    assert (place.path, place.checksum is None) == (path, legacy)
                    assert place.checksum is None or place.checksum.value == zlib.crc32(values)
            with pytest.raises(TensorNotFound):
                source.extent("other")
        found[legacy] = [name for name, place in extents.items() if place is not None]
    assert found == {False: ["own", "base"], True: ["own", "base", "part"]}
    deflated = repacked(save(tensors, tmp_path / "m.pt"), tmp_path / "d.pt", zipfile.ZIP_DEFLATED)
    with open_source(deflated) as source:
        assert source.extent("own") is None


@pytest.mark.parametrize("name", ["byteorder", "version"])
def test_a_member_whose_name_is_damaged_is_not_taken_for_one_that_is_not_there(tmp_path: Path, name: str) -> None:
    path = Path(save({"w": torch.ones(3)}, tmp_path / "m.pt"))
    data = path.read_bytes()
    at = data.rindex(b"/" + name.encode()) + 1  # in the directory; without it, the byte order is the usual one
    path.write_bytes(data[:at] + b"_" + data[at + 1 :])
    with pytest.raises(FormatError, match=f"corrupt: the member is 'm/{name}' in its own header"):
        open_source(str(path))
