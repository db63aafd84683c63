"""Live PyTorch modules.

Promise: tensors are named by the module's state dict, wrappers' prefixes (``module.``, ``_orig_mod.``) included, and
keep their identity, device and dtype: optimizers, ties, compiled modules and ``nn.LSTM``'s flat weights see the values
that they get. Tied tensors stay tied: one name covers the others, several have to agree. What is on the meta device is
made anew, on the device that is PyTorch's default. A constant does not require a gradient; a normalization whose
statistics are constant stays in evaluation mode, whatever ``model.train()`` says.
Limits: buffers that are not in the state dict are not listed, and an optimizer that was made for parameters on the meta
device has to be made again. ``model.requires_grad_(True)`` thaws constants. Buffers that a module of yours moves while
it trains cannot be known here. Subclasses of tensors that do everything by themselves (DTensor, quantized parameters)
and packed tensors keep their values.

Sources: torch/nn/modules/module.py (``_save_to_state_dict``, ``__setattr__``, ``_apply``), torch/nn/modules/rnn.py
(``RNNBase.__setattr__``), torch/nn/modules/batchnorm.py (``_NormBase.forward``), torch/nn/modules/lazy.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from weightport.errors import Error, Problem, RefusedError, TensorNotFound
from weightport.formats._torch_facts import CLASSES, facts_of
from weightport.formats._torch_names import role_of
from weightport.targets import _torch_tensors as tensors
from weightport.targets._rollback import Kept
from weightport.targets._variables import Undo, all_or_nothing, check_values, inherits
from weightport.tensors import Array, Index, TensorSpec, Value

#: Wrappers -> the attribute that holds the wrapped module.
_WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}


def accepts(obj: object) -> bool:
    """Whether this is a ``torch.nn.Module``. Imports nothing."""
    return bool(inherits(obj, "Module", "torch.nn.modules.module"))


class TorchModuleTarget:
    """A ``torch.nn.Module``; also a :class:`~weightport.tensors.Source` of its values, for ``verify``.

    Attributes:
        root: the prefix of a wrapper, which a mapping may leave out.
        tied: name -> the first name of the same tensor, for tensors of several names.
        hollow: the names of tensors on the meta device, which have no value to keep.

    Raises:
        RefusedError: lazy modules that have not run yet.
    """

    kind = "torch"
    format = "torch-module"
    path = "the torch model"

    def __init__(self, module: Any) -> None:
        self.module = module
        self._where = f"torch module {type(module).__name__}"
        self._tensors = _state(module)
        root = _wrapped(module)
        self.root = root if all(name.startswith(f"{root}.") for name in self._tensors) else ""
        lazy = [n for n, t in self._tensors.items() if type(t).__name__.startswith("Uninitialized")]
        if lazy:
            what = f"is lazy, and has no weights yet: {', '.join(map(repr, lazy[:3]))}{', ...' if lazy[3:] else ''}"
            raise RefusedError(Problem(self._where, what, "run it once on an input first"))
        self._specs = {name: tensors.spec_of(tensor, role_of(name)) for name, tensor in self._tensors.items()}
        first: dict[Any, str] = {}
        alike = {name: first.setdefault(tensors.identity(t), name) for name, t in self._tensors.items()}
        shared = {one for name, one in alike.items() if name != one}
        self.tied: Mapping[str, str] = {name: one for name, one in alike.items() if one in shared}
        self.hollow = [name for name, tensor in self._tensors.items() if tensor.is_meta]

    def specs(self) -> Mapping[str, TensorSpec]:
        """Name -> spec of every tensor of the state dict, in its order."""
        return self._specs

    def facts(self, names: Sequence[str]) -> Mapping[str, Any]:
        """What the module that owns these tensors records about the RNN that it is.

        Keys: those of :func:`~weightport.formats._torch_facts.facts_of`. Empty if it is no ``nn.LSTM``, ``GRU``,
        ``RNN`` or cell of these.

        Raises:
            TensorNotFound: no such tensor.
        """
        for name in names:
            self._tensor(name)
        owners = {name.rpartition(".")[0] for name in names}
        if len(owners) != 1:
            return {}
        try:
            owner = self.module.get_submodule(owners.pop())
        except AttributeError:  # a name that a hook made
            return {}
        kinds = [cls.__name__ for cls in type(owner).__mro__ if cls.__module__ == "torch.nn.modules.rnn"]
        known = next((name for name in kinds if name in CLASSES), None)
        return facts_of(known, vars(owner)) if known is not None else {}

    def read(self, name: str, index: Index = None) -> Array:
        """The values of a tensor, or the part that ``index`` cuts out.

        Raises:
            TensorNotFound: no such tensor.
            Error: it has no plain values, or is on the meta device.
        """
        tensor = self._tensor(name)
        at = f"{self._where}: variable {name!r}"
        if self._specs[name].unread:
            raise Error(Problem(at, f"cannot be read: {self._specs[name].unread}"))
        try:
            return tensors.array_of(tensor, index)
        except Error as error:
            raise Error(Problem(at, str(error))) from None

    def close(self) -> None:
        """Nothing to release."""

    def assign(self, values: Sequence[Value]) -> Any:
        """Give the tensors their values, all or nothing, freeze the constants, and return the module.

        Raises:
            RefusedError: tensors on the meta device that get no value, or constants that their module keeps moving.
            Error: names, shapes, dtypes or ties that do not fit (all of them, before anything is touched), or a failure
                half way, after which the tensors have their old values again.
        """
        check_values(values, self._specs, self._where)
        holders = _holders(self.module)
        values = self._one_each(values)
        self._refuse(values, holders)
        resting = _resting(self.module, {id(self._tensors[v.name]) for v in values if v.constant}, self._where)
        try:
            with Kept() as kept, all_or_nothing(self._where) as undo:
                for value in values:
                    tensor = self._tensors[value.name]
                    if tensor.is_meta:
                        tensor = self._materialized(value.name, holders[id(tensor)], undo)
                    else:
                        undo.append(tensors.keep(kept, tensor))
                    tensors.fill(tensor, value, self._where)
                    for one in self._alike(value.name) if value.constant else ():
                        _freeze(one, undo)
                for module in resting:
                    _rest(module, undo)
                self._compare(values)
        except BaseException:
            # What was made anew is gone again.
            self._tensors = _state(self.module)
            raise
        return self.module

    # Before anything is touched --------------------------------------------------------------------------------------

    def _one_each(self, values: Sequence[Value]) -> list[Value]:
        """One value for each tensor, the first; others of a tied one must be the same.

        Raises:
            Error: they are not.
        """
        found: dict[str, Value] = {}
        problems = []
        for value in values:
            first = found.setdefault(self.tied.get(value.name, value.name), value)
            if first is value:
                continue
            at = f"{self._where}: variable {value.name!r}"
            if first.constant != value.constant:
                kinds = [("initial", "constant")[v.constant] for v in (value, first)]
                what = f"is {kinds[0]}, and {kinds[1]} as {first.name!r}, to which it is tied"
                problems.append(Problem(at, what))
            elif not _same(first, value):
                problems.append(Problem(at, f"gets another value than {first.name!r}, to which it is tied"))
        if problems:
            raise Error(problems)
        return list(found.values())

    def _refuse(self, values: Sequence[Value], holders: Mapping[int, Any]) -> None:
        problems = []
        for value in values:
            at, spec = f"{self._where}: variable {value.name!r}", self._specs[value.name]
            if spec.unread:
                problems.append(Problem(at, f"cannot be given a value: it is {spec.unread}"))
            elif id(self._tensors[value.name]) not in holders:
                what = "is made by a hook of the state dict: it is no parameter or buffer that could be given a value"
                problems.append(Problem(at, what))
            elif tensors.repeats(self._tensors[value.name]):
                problems.append(Problem(at, "repeats its elements (expand), so that they cannot be given values"))
            elif tensors.is_fixed(self._tensors[value.name]):
                problems.append(Problem(at, "was made in inference mode", "transfer in torch.inference_mode() too"))
        given = {id(self._tensors[v.name]) for v in values}
        for name, tensor in self._tensors.items():
            if tensor.is_meta and id(tensor) not in given:
                hint = "move or initialize: it by a rule, or give it a value before"
                problems.append(Problem(f"{self._where}: variable {name!r}", "would stay on the meta device", hint))
        listed = {id(tensor) for tensor in self._tensors.values()}
        for places in holders.values():
            owner, kind, key, name = places[0]
            tensor = getattr(owner, kind)[key]
            if tensor.is_meta and id(tensor) not in listed:
                what = "is on the meta device and not in the state dict, so that no rule can give it a value"
                problems.append(Problem(f"{self._where}: buffer {name!r}", what, "set it before the transfer"))
        if problems:
            raise RefusedError(problems)

    # One by one ------------------------------------------------------------------------------------------------------

    def _materialized(self, name: str, places: Sequence[tuple[Any, str, str, str]], undo: list[Undo]) -> Any:
        """A tensor with memory in the place of one on the meta device, wherever that is held."""
        import torch

        old = self._tensors[name]
        device = torch.get_default_device() if hasattr(torch, "get_default_device") else "cpu"
        # Not empty_like, which imports a second's worth of Python for a tensor on the meta device.
        new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=device)
        if isinstance(old, torch.nn.Parameter):
            new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
            vars(new).update(vars(old))
        undo.append(lambda: _put(places, old))
        _put(places, new)
        for alias, tensor in self._tensors.items():
            if tensor is old:
                self._tensors[alias] = new
        return new

    def _alike(self, name: str) -> list[Any]:
        """The tensor, and others that are the same view of its memory."""
        if name not in self.tied:
            return [self._tensors[name]]
        alike = [self._tensors[n] for n, first in self.tied.items() if first == self.tied[name]]
        return list({id(tensor): tensor for tensor in alike}.values())

    def _compare(self, values: Sequence[Value]) -> None:
        """Refuse values of which one has overwritten another: of views that share memory."""
        held: dict[Any, set[str]] = {}
        for name, tensor in self._tensors.items():
            held.setdefault(tensors.storage(tensor), set()).add(self.tied.get(name, name))
        for value in values:
            tensor = self._tensors[value.name]
            if len(held[tensors.storage(tensor)]) > 1 and not tensors.holds(tensor, value):
                what = "shares memory with another tensor, and would not have its value"
                raise Error(Problem(f"{self._where}: variable {value.name!r}", what))

    def _tensor(self, name: str) -> Any:
        if name not in self._tensors:
            raise TensorNotFound(name, self._tensors, self._where)
        return self._tensors[name]


def _state(module: Any) -> dict[str, Any]:
    """The tensors of the state dict, themselves; hooks may put in what is no tensor (``_extra_state``)."""
    import torch

    return {n: t for n, t in module.state_dict(keep_vars=True).items() if isinstance(t, torch.Tensor)}


def _same(one: Value, other: Value) -> bool:
    pairs = zip(tensors.pieces(one), tensors.pieces(other), strict=True)
    return all(a.tobytes() == b.tobytes() for (_, a), (_, b) in pairs)


def _wrapped(module: Any) -> str:
    """The prefix that wrappers put before every name: ``_orig_mod.module``."""
    parts = []
    while (name := _WRAPPERS.get(type(module).__name__, "")) and hasattr(module, name):
        parts.append(name)
        module = getattr(module, name)
    return ".".join(parts)


def _holders(module: Any) -> dict[int, list[tuple[Any, str, str, str]]]:
    """Where each tensor is held, by its id: the module, ``_parameters`` or ``_buffers``, the key, and its full name."""
    found: dict[int, list[tuple[Any, str, str, str]]] = {}
    for prefix, owner in module.named_modules():
        for kind in ("_parameters", "_buffers"):
            for key, tensor in getattr(owner, kind).items():
                if tensor is not None:
                    place = (owner, kind, key, f"{prefix}.{key}" if prefix else key)
                    found.setdefault(id(tensor), []).append(place)
    return found


def _put(places: Sequence[tuple[Any, str, str, str]], tensor: Any) -> None:
    for owner, _, key, _ in places:
        setattr(owner, key, tensor)  # not into the dict: an nn.LSTM keeps its flat weights


def _freeze(tensor: Any, undo: list[Undo]) -> None:
    if tensor.requires_grad or tensor.grad is not None:
        was, gradient = tensor.requires_grad, tensor.grad

        def thaw() -> None:
            tensor.requires_grad_(was)
            tensor.grad = gradient

        undo.append(thaw)
        tensor.requires_grad_(False)
        tensor.grad = None  # an optimizer would go one step more by it


_MOVING = ("running_mean", "running_var")


def _resting(module: Any, constants: set[int], where: str) -> list[Any]:
    """Normalizations whose statistics are constant: in training mode they would go on moving them.

    Raises:
        RefusedError: one of which only some are.
    """
    found, problems = [], []
    for name, owner in module.named_modules():
        if not inherits(owner, "_NormBase", "torch.nn.modules.batchnorm"):
            continue
        moving = [getattr(owner, key) for key in _MOVING if getattr(owner, key) is not None]
        held = [id(tensor) in constants for tensor in moving]
        counted = owner.num_batches_tracked is not None and id(owner.num_batches_tracked) in constants
        if moving and all(held):
            found.append(owner)
        elif any(held) or counted:
            what = f"{name or 'it'!r} keeps moving its statistics while it trains, so they cannot be constant alone"
            problems.append(Problem(where, what, f"make {' and '.join(_MOVING)} constant, or neither"))
    if problems:
        raise RefusedError(problems)
    return found


def _rest(module: Any, undo: list[Undo]) -> None:
    was, own = module.training, vars(module).get("train")

    def wake() -> None:
        vars(module).pop("train", None)
        if own is not None:
            module.train = own
        module.training = was

    undo.append(wake)
    module.train = partial(resting_train, module)
    module.training = False


def resting_train(module: Any, mode: bool = True) -> Any:
    """What ``module.train(mode)`` does for a normalization with constant statistics: it stays in evaluation mode."""
    del mode
    module.training = False
    return module
