"""What the code of a TorchScript archive declares, line by line; and what PyTorch writes there."""

from __future__ import annotations

import io
import warnings
import zipfile
from typing import Any

import pytest

from tests.support import need
from weightport.formats._pickle import Global
from weightport.formats._torch_script import ScriptClasses

CODE = """class Outer(Module):
  __parameters__ = ["weight", "b\\"c", ]
  __buffers__ = []
  training : bool
  weight : Tensor
  size : Final[int] = 12
  ratio : Final[float] = 0.5
  on : Final[bool] = True
  off : Final[bool] = False
  mode : Final[str] = "LSTM"
  wrong : Final[int] = 1.5
  far : Final[float] = nowhere
  def forward(self: __torch__.Outer, x: Tensor) -> Tensor:
    __parameters__ = ["not this"]
    inner : Final[int] = 3
    return x
class Inner(Module):
  __buffers__ = ["mean", "var", ]
  __parameters__ = ["scale", ]
class Half(Module):
  __parameters__ = ["scale", ]
  size : Final[int] = 1
class Bare(Module):
  training : bool
"""


def classes(text: str | None) -> ScriptClasses:
    return ScriptClasses({"__torch__/deep/mod.py": text}.get)


def of(name: str, text: str | None = CODE, module: str = "__torch__.deep.mod") -> tuple[Any, dict[str, Any]]:
    found = classes(text)(Global(module, name))
    assert found is not None
    return found.weights, dict(found.constants)


def test_declarations() -> None:
    constants = {"size": 12, "ratio": 0.5, "on": True, "off": False, "mode": "LSTM", "wrong": None, "far": None}
    assert of("Outer") == ({"weight", 'b\\"c'}, constants)
    assert of("Inner") == ({"mean", "var", "scale"}, {})
    assert of("Half") == (None, {"size": 1})  # without one of the two lists, nothing is known of the weights
    assert of("Bare") == of("None") == of("Outer", module="__torch__.other") == of("Outer", None) == (None, {})


def test_code_before_the_first_class() -> None:
    assert of("A", '  __parameters__ = ["w"]\n  __buffers__ = []\n  x : Final[int] = 1\nclass A(Module):\n') == (
        None,
        {},
    )


@pytest.mark.parametrize(
    "line",
    [
        "   x : Final[int] = 1",
        " x : Final[int] = 1",
        "x : Final[int] = 1",
        "  x : Final[list] = 1",
        "  x: Final[int] = 1",
    ],
)
def test_lines_that_declare_nothing(line: str) -> None:
    assert of("A", f"class A(Module):\n{line}\n") == (None, {})


def test_a_file_is_read_once() -> None:
    asked = []
    found = ScriptClasses(lambda name: asked.append(name))
    assert found(Global("__torch__", "A")) is found(Global("__torch__", "B"))
    found(Global("__torch__.c", "A"))
    assert asked == ["__torch__.py", "__torch__/c.py"]


def scripted(module: Any) -> ScriptClasses:
    """The classes in the archive that PyTorch makes of a module."""
    torch, buffer = need("torch"), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        torch.jit.save(torch.jit.script(module), buffer)
    with zipfile.ZipFile(buffer) as archive:
        names = [name for name in archive.namelist() if "/code/" in name and name.endswith(".py")]
        return ScriptClasses({name.partition("/code/")[2]: archive.read(name).decode() for name in names}.get)


def test_what_pytorch_writes() -> None:
    torch = need("torch")
    rnn = scripted(torch.nn.LSTM(2, 3))(Global("__torch__.torch.nn.modules.rnn", "LSTM"))
    assert rnn is not None
    assert rnn.weights == {"weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"}
    constants = {"mode": "LSTM", "hidden_size": 3, "bidirectional": False, "dropout": 0.0}
    assert {key: rnn.constants[key] for key in constants} == constants
    norm = scripted(torch.nn.BatchNorm1d(3))(Global("__torch__.torch.nn.modules.batchnorm", "BatchNorm1d"))
    assert norm is not None
    assert norm.weights == {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
