"""Live PyTorch modules: names, ties, meta devices, constants through training, and the way back."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import weightport as wp
from tests.formats._arrays import same
from tests.formats._torch import array
from tests.support import need
from tests.targets.live import batch, constants, drawn, failing, value
from weightport.errors import Error, PlanError, RefusedError, TensorNotFound
from weightport.targets import _rollback, _torch_tensors, jax_tree, keras3, tf_module, torch_module
from weightport.targets.registry import live_target
from weightport.targets.torch_module import TorchModuleTarget
from weightport.tensors import Source, Target

torch = need("torch")
nn = torch.nn


class Tagger(nn.Module):
    """A recurrent encoder and a linear head."""

    def __init__(self, cell: str = "LSTM", **options: Any) -> None:
        super().__init__()
        self.encoder = getattr(nn, cell)(3, 4, batch_first=True, **options)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Any) -> Any:
        return self.head(self.norm(self.encoder(x)[0][:, -1]))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.out = nn.Linear(3, 5)
        self.out.weight = self.embed.weight
        self.again = self.out  # a module met twice


def state(module: Any) -> dict[str, np.ndarray]:
    return {name: array(tensor) for name, tensor in module.state_dict().items()}


def unchanged(module: Any, before: dict[str, np.ndarray]) -> None:
    now = state(module)
    assert list(now) == list(before)
    assert all(same(now[name], before[name]) for name in before)


def saved(path: Path, arrays: dict[str, np.ndarray]) -> str:
    np.savez(path, **arrays)
    return str(path)


def random_like(module: Any) -> dict[str, np.ndarray]:
    return drawn(TorchModuleTarget(module).specs(), module.state_dict())


ALL = {"weightport": 1, "rules": [{"from": "{x**}", "to": "{x**}"}]}


# --- names ------------------------------------------------------------------------------------------------------------


def test_accepts_modules_only() -> None:
    for module in (nn.Linear(1, 2), Tagger(), nn.Module(), nn.Sequential()):
        accepted = [m for m in (keras3, tf_module, jax_tree, torch_module) if m.accepts(module)]
        assert accepted == [torch_module]
        assert isinstance(live_target(module), TorchModuleTarget)
    for obj in (nn.Linear, torch.ones(2), nn.Linear(1, 2).state_dict(), None):
        assert not torch_module.accepts(obj)
    target: Target = TorchModuleTarget(nn.Linear(1, 2))
    assert isinstance(target, Source)


def test_names_are_those_of_the_state_dict() -> None:
    module = Tagger(num_layers=2, bidirectional=True)
    target = TorchModuleTarget(module)
    assert list(target.specs()) == list(module.state_dict())
    for name, tensor in module.state_dict().items():
        spec = target.specs()[name]
        assert (spec.shape, spec.dtype, spec.nbytes) == (array(tensor).shape, array(tensor).dtype, array(tensor).nbytes)
        assert same(target.read(name), array(tensor))
        assert spec.role == ("counter" if name == "norm.num_batches_tracked" else "weight")
    assert same(target.read("head.weight", (slice(0, 1), slice(1, 3))), array(module.head.weight)[:1, 1:3])
    with pytest.raises(TensorNotFound, match=r"^torch module Tagger: no tensor 'head.wight'; closest: 'head.weight'"):
        target.read("head.wight")


@pytest.mark.parametrize(
    ("wrap", "root"),
    [
        (lambda m: m, ""),
        (lambda m: torch.compile(m, backend="eager"), "_orig_mod"),
        (nn.DataParallel, "module"),
        (lambda m: torch.compile(nn.DataParallel(m), backend="eager"), "_orig_mod.module"),
    ],
)
def test_the_names_of_wrapped_modules_may_leave_out_the_prefix(tmp_path: Path, wrap: Any, root: str) -> None:
    module = Tagger()
    wrapped = wrap(module)
    target = TorchModuleTarget(wrapped)
    assert target.root == root
    assert list(target.specs()) == list(wrapped.state_dict())
    assert all(name.startswith(root) for name in target.specs())
    arrays = random_like(module)
    cell = {name.removeprefix("encoder."): arrays.pop(name) for name in list(arrays) if name.startswith("encoder.")}
    rules = [
        {"from": {"layout": "lstm.torch", "scope": "old"}, "to": {"layout": "lstm.torch", "scope": "encoder"}},
        {"from": "head.{x}", "to": "head.{x}"},
        {"from": "norm.{x}", "to": "norm.{x}"},
    ]
    path = saved(tmp_path / "a.npz", arrays | {f"old.{name}": values for name, values in cell.items()})
    result = wp.transfer(path, wrapped, {"weightport": 1, "rules": rules})
    assert result.target is wrapped
    assert all(same(array(tensor), arrays[name]) for name, tensor in module.state_dict().items() if name in arrays)
    assert same(array(module.encoder.weight_ih_l0), cell["weight_ih_l0"])
    full = {"weightport": 1, "rules": [{"from": "{x**}", "to": f"{root}.{{x**}}".lstrip(".")}], "ignore": ["old.**"]}
    assert wp.plan(path, wrapped, {**full, "keep": ["**encoder.**"]}).problems == ()


def test_a_scope_of_the_mapping_stands_before_the_names(tmp_path: Path) -> None:
    module = nn.ModuleDict({"model": Tagger("GRU")})
    arrays = {name.removeprefix("model."): values for name, values in random_like(module).items()}
    wp.transfer(saved(tmp_path / "a.npz", arrays), module, {**ALL, "target": {"scope": "model"}})
    assert same(array(module["model"].head.weight), arrays["head.weight"])


def test_facts_of_rnns() -> None:
    module = nn.ModuleDict({
        "lstm": nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2),
        "gru": nn.GRU(3, 4, bias=False, batch_first=True),
        "relu": nn.RNN(3, 4, nonlinearity="relu"),
        "cell": nn.RNNCell(3, 4, nonlinearity="relu"),
        "own": type("Own", (nn.LSTM,), {})(3, 4),
        "linear": nn.Linear(3, 4),
    })  # fmt: skip
    target = TorchModuleTarget(module)
    rnn = {"num_layers": 1, "bidirectional": False, "proj_size": 0, "use_bias": True, "batch_first": False, "units": 4}
    assert target.facts(["lstm.weight_ih_l0", "lstm.weight_hh_l1_reverse"]) == rnn | {
        "class": "LSTM", "num_layers": 2, "bidirectional": True, "proj_size": 2, "activation": "tanh",
        "recurrent_activation": "sigmoid", "forget_bias": 0.0,
    }  # fmt: skip
    assert target.facts(["gru.weight_ih_l0"]) == rnn | {
        "class": "GRU", "use_bias": False, "batch_first": True, "activation": "tanh", "recurrent_activation": "sigmoid",
        "reset_after": True,
    }  # fmt: skip
    assert target.facts(["relu.weight_ih_l0"]) == rnn | {"class": "RNN", "activation": "relu"}
    assert target.facts(["cell.weight_ih"]) == {"class": "RNNCell", "units": 4, "use_bias": True, "activation": "relu"}
    assert target.facts(["own.weight_ih_l0"])["forget_bias"] == 0.0
    assert target.facts(["linear.weight"]) == target.facts(["gru.weight_ih_l0", "relu.weight_ih_l0"]) == {}
    with pytest.raises(TensorNotFound):
        target.facts(["lstm.weight"])


def test_an_rnn_s_nonlinearity_is_compared_with_the_source_s(tmp_path: Path) -> None:
    torch.save(nn.RNN(3, 4, nonlinearity="relu"), tmp_path / "relu.pt")
    cell = {"layout": "rnn.torch", "scope": ""}
    mapping = {"weightport": 1, "rules": [{"from": cell, "to": cell}]}
    with pytest.raises(PlanError, match="the source's activation is relu, the target's tanh"):
        wp.transfer(tmp_path / "relu.pt", nn.RNN(3, 4), mapping)
    wp.transfer(tmp_path / "relu.pt", nn.RNN(3, 4, nonlinearity="relu"), mapping)


def test_lazy_modules_are_refused_until_they_have_run() -> None:
    module = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    with pytest.raises(RefusedError) as caught:
        TorchModuleTarget(module)
    assert str(caught.value) == (
        "torch module Sequential: is lazy, and has no weights yet: '0.weight', '0.bias', '1.weight', ...; run it once "
        "on an input first"
    )
    module(torch.ones(2, 2))
    assert list(TorchModuleTarget(module).specs()) == list(module.state_dict())


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [False, True])
def test_every_dtype_bit_for_bit_in_place(monkeypatch: pytest.MonkeyPatch, pieces: bool) -> None:
    if pieces:
        monkeypatch.setattr(_torch_tensors, "PIECE", 16)
        monkeypatch.setattr(_rollback, "LIMIT", 0)
    names = ["float64", "float32", "float16", "bfloat16", "complex64", "int64", "int8", "uint8", "bool", "uint16"]
    names += ["float8_e4m3fn", "float8_e5m2", "complex128", "int32", "int16", "uint32", "uint64"]
    module = nn.Module()
    arrays = {}
    for number, name in enumerate(names):
        dtype = np.dtype(getattr(ml_dtypes, name)) if hasattr(ml_dtypes, name) else np.dtype(name)
        bits = np.random.default_rng(number).integers(0, 2 if name == "bool" else 256, 12 * dtype.itemsize, np.uint8)
        arrays[f"of_{name}"] = bits.view(dtype).reshape(4, 3)
        module.register_buffer(f"of_{name}", torch.zeros(3, 4, dtype=getattr(torch, name)).t())  # not contiguous
    module.register_buffer("scalar", torch.tensor(0.0))
    module.register_buffer("empty", torch.zeros(0, 3))
    arrays |= {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 3), np.float32)}
    held = {name: tensor.data_ptr() for name, tensor in module.named_buffers()}
    target = TorchModuleTarget(module)
    assert target.assign([value(name, values) for name, values in arrays.items()]) is module
    for name, values in arrays.items():
        assert same(array(getattr(module, name)), values), name
        assert same(target.read(name), values), name
    assert {name: tensor.data_ptr() for name, tensor in module.named_buffers()} == held
    before = state(module)
    with pytest.raises(OSError, match="gone"):
        target.assign([
            *(value(n, np.zeros(a.shape, a.dtype)) for n, a in arrays.items() if n != "scalar"),
            failing("scalar", target.specs()["scalar"], OSError("gone")),
        ])  # fmt: skip
    unchanged(module, before)


def test_misfits_change_nothing() -> None:
    module = nn.Linear(2, 3)
    before = state(module)
    with pytest.raises(Error) as caught:
        TorchModuleTarget(module).assign([
            value("weight", np.ones((2, 3), np.float32)),
            value("bias", np.ones(3)),
            value("wight", np.ones(3)),
        ])  # fmt: skip
    assert str(caught.value) == (
        "torch module Linear: variable 'weight': shape [2, 3] for a variable of [3, 2]\n"
        "torch module Linear: variable 'bias': dtype float64 for a variable of float32\n"
        "torch module Linear: no variable 'wight'; closest: 'weight'"
    )
    unchanged(module, before)


def test_a_value_that_is_not_as_it_was_said_takes_everything_back() -> None:
    module = nn.Linear(2, 3)
    target = TorchModuleTarget(module)
    before = state(module)
    spec = target.specs()["bias"]
    with pytest.raises(PlanError, match=r"variable 'bias': float32 \[3\] was planned, float64 \[3\] was produced"):
        target.assign([*constants(drawn(target.specs(), ["weight"])), value("bias", np.ones(3), spec=spec)])
    unchanged(module, before)
    assert all(p.requires_grad for p in module.parameters())


class Stubborn(torch.Tensor):
    """Takes no values."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.copy_ and type(args[0]) is cls:
            raise RuntimeError("no")
        return super().__torch_function__(function, types, args, kwargs)


def test_what_pytorch_refuses_takes_everything_back() -> None:
    module = nn.Linear(2, 3)
    module.register_buffer("stubborn", torch.ones(3).as_subclass(Stubborn))
    target = TorchModuleTarget(module)
    before = state(module)
    with pytest.raises(Error, match=r"variable 'stubborn': PyTorch refused the value: no$"):
        target.assign([value(n, np.zeros(s.shape, "f4"), constant=True) for n, s in target.specs().items()])
    unchanged(module, before)
    assert module.weight.requires_grad


def test_what_cannot_be_written_to_is_refused() -> None:
    module = nn.Module()
    module.register_buffer("repeated", torch.ones(1).expand(3))
    with torch.inference_mode():
        module.register_buffer("inferred", torch.ones(3))
    values = [value(name, np.zeros(3, "f4")) for name in ("repeated", "inferred")]
    with pytest.raises(RefusedError) as caught:
        TorchModuleTarget(module).assign(values)
    assert str(caught.value) == (
        "torch module Module: variable 'repeated': repeats its elements (expand), so that they cannot be given values\n"
        "torch module Module: variable 'inferred': was made in inference mode; transfer in torch.inference_mode() too"
    )
    with torch.inference_mode():
        TorchModuleTarget(module).assign(values[1:])
        assert module.inferred.tolist() == [0.0] * 3


@pytest.mark.filterwarnings("ignore")  # sparse and quantized tensors
def test_what_has_no_plain_values_keeps_them(tmp_path: Path) -> None:
    module = nn.Linear(2, 3)
    module.register_buffer("sparse", torch.eye(2).to_sparse())
    module.register_buffer("quantized", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))
    target = TorchModuleTarget(module)
    assert {n: s.unread for n, s in target.specs().items() if s.unread} == {
        "sparse": "sparse", "quantized": "quantized (qint8)",
    }  # fmt: skip
    arrays = {"weight": np.ones((3, 2), "f4"), "bias": np.ones(3, "f4")}
    wp.transfer(saved(tmp_path / "a.npz", arrays), module, {**ALL, "keep": ["sparse", "quantized"]})
    assert same(array(module.weight), arrays["weight"])
    with pytest.raises(RefusedError, match="variable 'sparse': cannot be given a value: it is sparse"):
        target.assign([value("sparse", np.ones((2, 2), "f4"))])
    with pytest.raises(Error, match="variable 'sparse': cannot be read: sparse"):
        target.read("sparse")


def test_a_tensor_that_a_hook_makes_cannot_be_given_a_value() -> None:
    module = nn.Linear(2, 2)
    module.register_state_dict_post_hook(lambda m, s, p, _: s.update({p + "sum": m.weight.sum(), p + "text": "x"}))
    target = TorchModuleTarget(module)
    assert list(target.specs()) == ["weight", "bias", "sum"]
    with pytest.raises(RefusedError, match="variable 'sum': is made by a hook of the state dict"):
        target.assign([value("sum", np.float32(1))])


@pytest.mark.parametrize("norm", ["weight_norm", "parametrized"])
def test_parametrized_weights_have_the_names_of_their_originals(norm: str) -> None:
    if norm == "weight_norm":
        module = nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
    else:
        module = nn.utils.parametrizations.orthogonal(nn.Linear(3, 3))
    target = TorchModuleTarget(module)
    arrays = {n: np.abs(a) + 1 for n, a in drawn(target.specs(), list(target.specs())).items()}
    target.assign([value(n, a) for n, a in arrays.items()])
    unchanged(module, arrays)
    if norm == "weight_norm":
        size, direction = (arrays[f"parametrizations.weight.original{k}"] for k in (0, 1))
        expected = size * direction / np.linalg.norm(direction, axis=1, keepdims=True)
        assert np.allclose(module.weight.detach().numpy(), expected, atol=1e-6)


def test_a_graph_of_the_old_values_is_not_differentiated_with_the_new_ones() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    loss = module(torch.ones(1, 2)).sum()
    target = TorchModuleTarget(module)
    target.assign([value(n, a) for n, a in drawn(target.specs(), list(target.specs())).items()])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- ties -------------------------------------------------------------------------------------------------------------


def test_tied_tensors_stay_tied(tmp_path: Path) -> None:
    module = Tied()
    target = TorchModuleTarget(module)
    assert set(target.specs()) == set(module.state_dict())
    first = "embed.weight"
    assert target.tied == {first: first, "out.weight": first, "again.weight": first, "out.bias": "out.bias",
                           "again.bias": "out.bias"}  # fmt: skip
    arrays = {"e": np.arange(15, dtype="f4").reshape(5, 3), "b": np.ones(5, "f4")}
    rules = [{"from": "e", "to": "out.weight"}, {"from": "b", "to": "again.bias", "as": "constant"}]
    result = wp.transfer(saved(tmp_path / "a.npz", arrays), module, {"weightport": 1, "rules": rules})
    assert result.plan.target == {
        "embed.weight": "moved", "out.weight": "moved", "again.weight": "moved", "out.bias": "constant",
        "again.bias": "constant",
    }  # fmt: skip
    assert module.out.weight is module.embed.weight
    assert same(array(module.embed.weight), arrays["e"])
    assert not module.out.bias.requires_grad


def test_every_name_of_a_tied_tensor_may_be_given_the_same_value_and_no_other(tmp_path: Path) -> None:
    module = Tied()
    torch.save(Tied().state_dict(), tmp_path / "tied.pt")
    wp.transfer(tmp_path / "tied.pt", module, ALL)
    assert module.out.weight is module.embed.weight
    before = state(module)
    weights = {n: np.ones(s.shape, "f4") for n, s in TorchModuleTarget(module).specs().items()}
    weights["out.weight"] = np.zeros((5, 3), "f4")
    with pytest.raises(Error) as caught:
        wp.transfer(saved(tmp_path / "a.npz", weights), module, ALL)
    assert str(caught.value) == (
        "torch module Tied: variable 'out.weight': gets another value than 'embed.weight', to which it is tied"
    )
    one = {"e": np.ones((5, 3), "f4"), "b": np.ones(5, "f4")}
    rules = [{"from": "e", "to": "embed.weight"}, {"from": "e", "to": "out.weight", "as": "constant"}]
    rules.append({"from": "b", "to": "out.bias"})
    with pytest.raises(Error, match=r"'out.weight': is constant, and initial as 'embed.weight', to which it is tied"):
        wp.transfer(saved(tmp_path / "b.npz", one), module, {"weightport": 1, "rules": rules})
    keep = {"weightport": 1, "rules": [rules[0], rules[2]], "keep": ["again.weight"]}
    with pytest.raises(
        PlanError, match=r"'again.weight' is tied to 'embed.weight', which gets a value: it cannot keep"
    ):
        wp.transfer(saved(tmp_path / "b.npz", one), module, keep)
    unchanged(module, before)


def test_views_of_the_same_memory() -> None:
    module = nn.Module()
    flat = torch.zeros(6)
    module.first, module.second = nn.Parameter(flat[:3]), nn.Parameter(flat[3:])
    module.again = nn.Parameter(flat[:3].detach())
    module.register_buffer("middle", flat[2:4])
    target = TorchModuleTarget(module)
    assert target.tied == {"first": "first", "again": "first"}
    halves = [value("first", np.arange(3, dtype="f4")), value("second", np.arange(3, 6, dtype="f4"))]
    target.assign(halves)
    assert flat.tolist() == [0, 1, 2, 3, 4, 5]
    target.assign([value("again", np.ones(3, "f4"), constant=True)])
    assert module.first.tolist() == [1, 1, 1]
    assert [n for n, p in module.named_parameters() if p.requires_grad] == ["second"]
    before = state(module)
    with pytest.raises(
        Error, match="variable 'first': shares memory with another tensor, and would not have its value"
    ):
        target.assign([*halves, value("middle", np.array([9, 9], "f4"))])
    unchanged(module, before)
    target.assign([*halves, value("middle", np.array([2, 3], "f4"))])


def test_a_tied_tensor_is_initialized_once(tmp_path: Path) -> None:
    module = Tied()
    rules = [{"to": "{x**}", "initialize": {"uniform": {"seed": 1}}}]
    wp.transfer(
        saved(tmp_path / "a.npz", {"x": np.ones(1)}), module, {"weightport": 1, "rules": rules, "ignore": ["x"]}
    )
    assert module.out.weight is module.embed.weight


# --- the meta device --------------------------------------------------------------------------------------------------


def test_modules_on_the_meta_device_are_made_real(tmp_path: Path) -> None:
    with torch.device("meta"):
        module = nn.ModuleDict({"tagger": Tagger(num_layers=2), "tied": Tied(), "conv": nn.Conv2d(2, 3, 2)})
        module["conv"] = module["conv"].to(memory_format=torch.channels_last)
        module["tagger"].head.weight.requires_grad_(False)
        module["tagger"].head.weight.note = "kept"
    real = nn.ModuleDict({"tagger": Tagger(num_layers=2), "tied": Tied(), "conv": nn.Conv2d(2, 3, 2)})
    with torch.no_grad():
        real["tagger"].norm.num_batches_tracked.fill_(7)
    torch.save(real.state_dict(), tmp_path / "real.pt")
    wp.transfer(tmp_path / "real.pt", module, ALL)
    unchanged(module, state(real))
    assert not any(t.is_meta for t in [*module.parameters(), *module.buffers()])
    assert module["tied"].out.weight is module["tied"].embed.weight
    assert module["conv"].weight.is_contiguous(memory_format=torch.channels_last)
    head = module["tagger"].head.weight
    assert (type(head), head.requires_grad, head.note) == (nn.Parameter, False, "kept")
    x = torch.from_numpy(batch()[0])
    with torch.no_grad():
        assert torch.equal(module["tagger"].eval()(x), real["tagger"].eval()(x))  # by the flat weights of the LSTM


def test_what_would_stay_on_the_meta_device_is_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        module = Tagger()
    with pytest.raises(Error, match=r"variable 'head.bias': is on the meta device: it has no values"):
        TorchModuleTarget(module).read("head.bias")
    arrays = random_like(Tagger())
    path = saved(tmp_path / "a.npz", arrays)
    mapping = {**ALL, "keep": ["head.bias"]}
    del arrays["head.bias"]
    with pytest.raises(PlanError) as told:
        wp.plan(saved(tmp_path / "b.npz", arrays), module, mapping).check()
    assert str(told.value) == (
        "the torch model: target tensor 'head.bias' (float32 [1]) has no value to keep; move or initialize: it by a "
        "rule"
    )
    with pytest.raises(RefusedError) as caught:
        TorchModuleTarget(module).assign([value(n, a) for n, a in arrays.items()])
    assert str(caught.value) == (
        "torch module Tagger: variable 'head.bias': would stay on the meta device; move or initialize: it by a rule, "
        "or give it a value before"
    )
    module.register_buffer("scratch", torch.ones(2, device="meta"), persistent=False)
    with pytest.raises(RefusedError, match="buffer 'scratch': is on the meta device and not in the state dict"):
        wp.transfer(path, module, ALL)
    assert all(t.is_meta for t in [*module.parameters(), *module.buffers()])
    module.scratch = torch.ones(2)
    wp.transfer(path, module, ALL)
    unchanged(module, random_like(Tagger()))


def test_a_failure_half_way_leaves_the_meta_device_as_it_was() -> None:
    with torch.device("meta"):
        module = nn.Linear(2, 3)
    weight = module.weight
    target = TorchModuleTarget(module)
    with pytest.raises(OSError, match="gone"):
        target.assign([value("weight", np.ones((3, 2), "f4"), constant=True),
                       failing("bias", target.specs()["bias"], OSError("gone"))])  # fmt: skip
    assert module.weight is weight
    assert weight.is_meta
    assert weight.requires_grad
    target.assign([value("weight", np.ones((3, 2), "f4")), value("bias", np.ones(3, "f4"))])
    assert same(array(module.weight), np.ones((3, 2), "f4"))
    assert same(target.read("bias"), np.ones(3, "f4"))


# --- constants --------------------------------------------------------------------------------------------------------


def trained(module: Any, steps: int = 60, optimizer: Any = None) -> list[float]:
    x, y = map(torch.from_numpy, batch())
    optimizer = optimizer or torch.optim.Adam(module.parameters(), 0.05, weight_decay=0.01)
    losses = []
    module.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(module(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("statistics", [False, True])
def test_a_constant_encoder_stays_while_the_head_learns(statistics: bool) -> None:
    module = Tagger()
    target = TorchModuleTarget(module)
    arrays = random_like(module)
    arrays["norm.running_var"] = np.abs(arrays["norm.running_var"]) + 1
    frozen = [n for n in arrays if n.startswith("encoder.") or (statistics and "running" in n)]
    del arrays["norm.num_batches_tracked"]
    target.assign(constants(arrays, lambda name: name in frozen))
    assert [n for n, p in module.named_parameters() if not p.requires_grad] == [n for n in frozen if "encoder" in n]
    losses = trained(module)
    assert losses[-1] < 0.9 * losses[0]
    moved = {n for n, a in arrays.items() if not same(array(module.state_dict()[n]), a)}
    assert moved == set(arrays) - set(frozen)
    assert module.norm.training is not statistics
    again = copy.deepcopy(module)
    assert again.train().norm.training is not statistics
    assert not statistics or again.norm.train.args == (again.norm,)
    torch.save(module, io.BytesIO())


def test_a_gradient_of_before_moves_no_constant() -> None:
    module = Tagger()
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    trained(module, 2, optimizer)  # leaves gradients and momentum behind
    arrays = {n: a for n, a in random_like(module).items() if n.startswith("encoder.")}
    TorchModuleTarget(module).assign(constants(arrays))
    optimizer.step()
    assert all(same(array(module.state_dict()[n]), a) for n, a in arrays.items())


def test_statistics_that_are_constant_in_part_are_refused() -> None:
    module = Tagger()
    target = TorchModuleTarget(module)
    before = state(module)
    for names in (["norm.running_mean"], ["norm.num_batches_tracked"]):
        with pytest.raises(RefusedError) as caught:
            target.assign(constants({name: before[name] for name in names}))
        assert str(caught.value) == (
            "torch module Tagger: 'norm' keeps moving its statistics while it trains, so they cannot be constant "
            "alone; make running_mean and running_var constant, or neither"
        )
    unchanged(module, before)


def test_a_failure_thaws_what_was_frozen() -> None:
    module = Tagger()
    trained(module, 1)
    target = TorchModuleTarget(module)
    before = state(module)
    gradient = module.head.weight.grad
    names = ["head.weight", "norm.running_mean", "norm.running_var"]
    values = constants(drawn(target.specs(), names))
    with pytest.raises(KeyboardInterrupt):
        target.assign([*values, failing("head.bias", target.specs()["head.bias"], KeyboardInterrupt())])
    unchanged(module, before)
    assert module.head.weight.requires_grad
    assert module.head.weight.grad is gradient
    assert "train" not in vars(module.norm)
    assert module.norm.training


# --- the whole way ----------------------------------------------------------------------------------------------------


def test_a_keras_lstm_in_a_torch_module_is_the_same_function(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "l/kernel": rng.normal(size=(3, 16)).astype("f4"),
        "l/recurrent_kernel": rng.normal(size=(4, 16)).astype("f4"),
        "l/bias": rng.normal(size=16).astype("f4"),
    }
    path = saved(tmp_path / "keras.npz", arrays)
    module = Tagger()
    rules = [
        {"from": {"layout": "lstm.keras", "scope": "l"}, "to": {"layout": "lstm.torch", "scope": "encoder"},
         "as": "constant"},
        {"to": "head.{w}", "initialize": {"uniform": {"seed": 1}}},
    ]  # fmt: skip
    mapping = {"weightport": 1, "rules": rules, "keep": ["norm.**"]}
    result = wp.transfer(path, module, mapping)
    assert result.target is module
    assert result.plan.target["encoder.weight_ih_l0"] == "constant"
    assert result.plan.target["norm.num_batches_tracked"] == "kept"
    proof = wp.verify(path, module, mapping, live=True)
    assert proof.equal
    assert proof.cells
    assert all(cell.max_abs_diff < 1e-5 for cell in proof.cells)
    with torch.no_grad():
        module.encoder.weight_ih_l0[0, 0] += 1
    assert not wp.verify(path, module, mapping).equal


def test_verify_says_what_a_model_on_the_meta_device_is(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.npz", random_like(nn.Linear(2, 3)))
    with pytest.raises(Error, match="is on the meta device: it has no values"):
        wp.verify(path, nn.Linear(2, 3, device="meta"), ALL)
