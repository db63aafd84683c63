"""TensorFlow graphs: variables that are born with the pretrained value, or as constants.

Promise: importing this module imports no framework; :func:`getter` is used where a graph is built, and there TensorFlow
is imported already.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from weightport.errors import ConditionError
from weightport.opening import close, gather
from weightport.tensors import Source, TensorSpec, Value

_LOG = logging.getLogger("weightport")

if TYPE_CHECKING:
    from weightport.api import AnyMapping
    from weightport.opening import Named


class Getter:
    """A ``custom_getter``. See :func:`getter`."""

    def __init__(self, source: Source, mapping: Any, large_constants: str) -> None:
        from weightport.execute import Reader, Unchanged, value_of
        from weightport.inputs import expected, files
        from weightport.plan import Lookup
        from weightport.targets.tf_getter import make_getter

        watch = Unchanged(files(source), replaced=True)
        expected(source, None, mapping)
        self._lookup = Lookup(source, mapping)
        self._source, self._settled = source, 0
        reader = Reader(source, watch)

        def values(name: str, spec: TensorSpec) -> Value | None:
            known = len(self._lookup.notes)
            item = self._lookup(name, spec)
            for note in self.notes[known:]:
                _LOG.warning("%s", note)
            self._settle()
            return None if item is None else value_of(item, reader)

        self._getter = make_getter(values, large_constants=large_constants)

    def __call__(self, getter: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        """The variable, as ``tf.compat.v1.variable_scope`` asks its ``custom_getter`` for it."""
        return self._getter(getter, name, *args, **kwargs)

    @property
    def notes(self) -> list[str]:
        """What was done to a cell's weights beside copying, and what was assumed of the cell that is being built.

        The graph does not say it before it is finished: what a cell adds to its forget gate, say. Each is logged
        once, as a warning of the logger ``weightport``; a mapping that states it (``forget_bias: 1``) silences it.
        """
        return list(self._lookup.notes)

    def check(self) -> None:
        """After the model is built: every source tensor that the mapping moves was asked for.

        Raises:
            PlanError: the tensors that no variable of the model took.
            ConditionError: the model lacks a part of a cell (its peepholes) that does something in the source.
        """
        self._lookup.check()
        self._settle()

    def _settle(self) -> None:
        """Look at the conditions that came up since the last time."""
        from weightport.settle import unmet

        asked = list(self._lookup.conditions)[self._settled :]
        problems = unmet(asked, self._source)
        if problems:
            raise ConditionError(problems)
        self._settled += len(asked)


def getter(
    source: str | os.PathLike[str] | Source,
    mapping: AnyMapping,
    *,
    large_constants: str = "refuse",
    sources: Named = None,
) -> Getter:
    """A ``custom_getter`` for ``tf.compat.v1.variable_scope``: variables get pretrained values as they are created.

    ``as: initial`` makes the variable's initializer yield the pretrained value; ``as: constant`` makes a ``Const`` in
    the variable's place. Every variable that is created inside the scope must be covered by a rule, or listed under
    ``keep:``.

    Args:
        source: a path, or an open source, which has to stay open until the initializers have run.
        mapping: a path, a dict or a loaded mapping; target names are the variables' full names without ``:0``.
        large_constants: constants beyond protobuf's 2 GiB are refused (``"refuse"``), or held outside the graph as
            variables that are not trainable (``"variable"``).
        sources: name -> path or open source, of the further sources that the mapping names.

    Raises:
        MappingError: the mapping is wrong.
        FormatError: the source is not the file that the mapping is for.
        PlanError: it does not fit the source; later, from ``get_variable``: it does not fit the variable.
        ConditionError: from ``get_variable``: the variable's cell has no place for a part of the source's that does
            something.
        RefusedError: constants that do not fit into a graph.
    """
    from weightport import api

    rules = api.load_mapping(mapping)
    opened, own = gather(source, rules, sources)
    try:
        return Getter(opened, rules, large_constants)
    except BaseException:
        close(own)
        raise
