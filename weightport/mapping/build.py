"""From a document whose shape has been checked to typed rules.

Promise: every mistake that can be seen without a model is found here, all of them in one go: layouts, patterns,
captures that are not bound, operations, initializers, files. Limit: no model is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from weightport.errors import LayoutError, MappingError, Problem, closest
from weightport.initializers import check_arguments, settled
from weightport.layouts.shipped import builtin, find_layout
from weightport.layouts.table import Layout, parse_layout
from weightport.mapping import operations, places
from weightport.mapping.document import Document, Trail
from weightport.mapping.patterns import Glob, Pattern, shown
from weightport.mapping.rules import (
    OPERATIONS,
    CellRef,
    CellRule,
    Columns,
    Initializer,
    InitRule,
    Mapping,
    Ops,
    Rule,
    TensorRule,
    Vocab,
)
from weightport.mapping.shape import check_shape, described

VERSION = 1


def build(document: Document) -> Mapping:
    """The mapping of a document.

    Raises:
        MappingError: every problem of the document.
    """
    data = document.data
    if not isinstance(data, dict):
        document.fail((), f"expected a table with weightport and rules, found {described(data)}")
        raise document.stop()
    version = data.get("weightport", VERSION)
    if type(version) is int and version != VERSION:
        # Whatever else is said about a file in another language would be wrong.
        hint = "a newer weightport may read it" if version > VERSION else ""
        document.fail(("weightport",), f"expected version {VERSION}, found {version}", hint)
        raise document.stop()
    return _Builder(document).build()


class _Builder:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.data: dict[str, Any] = document.data
        self.shape = check_shape(document)
        self.layouts: dict[str, Layout] = {}

    def build(self) -> Mapping:
        self._own_layouts()
        rules = self.data.get("rules")
        built = [self._rule(k, rule) for k, rule in enumerate(rules if isinstance(rules, list) else ())]
        ignore, keep = self._globs("ignore"), self._globs("keep")
        mapping = Mapping(
            path=self.document.path,
            version=VERSION,
            description=self._text("description"),
            source=places.side(self.document, self.shape, "source"),
            target=places.side(self.document, self.shape, "target"),
            layouts=self.layouts,
            rules=tuple(rule for rule in built if rule is not None),
            ignore=ignore,
            keep=keep,
            document=self.data,
            sources=places.named_sources(self.document, self.shape),
        )
        if self.document.problems:
            error = self.document.stop()
            error.partial = mapping
            raise error
        return mapping

    def _text(self, *trail: str) -> str:
        """The text at a place, or nothing where there is none, or another thing."""
        found: Any = self.data
        for key in trail:
            found = found.get(key) if isinstance(found, dict) else None
        return found if isinstance(found, str) and self.shape.ok(*trail) else ""

    def _fail(self, trail: Trail, what: str, hint: str = "") -> None:
        self.document.fail(trail, what, hint)

    # --- layouts and globs --------------------------------------------------------------------------------------------

    def _own_layouts(self) -> None:
        tables = self.data.get("layouts")
        for name, table in tables.items() if isinstance(tables, dict) else ():
            if not self.shape.ok("layouts", name):
                continue
            where = self.document.where(("layouts", name))
            try:
                self.layouts[name] = parse_layout(name, table, where)
            except LayoutError as error:
                for problem in error.problems:
                    self.document.problems.append(_placed(problem, where))

    def _globs(self, key: str) -> tuple[Glob, ...]:
        found = []
        texts = self.data.get(key)
        for k, text in enumerate(texts if isinstance(texts, list) else ()):
            if self.shape.ok(key, k) and not self.document.full:
                try:
                    found.append(Glob(text, self.document.where((key, k))))
                except MappingError as error:
                    self.document.problems += error.problems
        return tuple(found)

    # --- rules --------------------------------------------------------------------------------------------------------

    def _rule(self, index: int, rule: Any) -> Rule | None:
        trail: Trail = ("rules", index)
        if not isinstance(rule, dict) or self.document.full:
            return None
        moves, fills = "from" in rule, "initialize" in rule
        if moves and fills:
            self._fail((*trail, "initialize"), "a rule with from has no initialize", "make two rules of it")
        elif not moves and not fills and trail not in self.shape.loose:
            self._fail(trail, "no key 'from' or 'initialize'", "a rule moves with from, or fills with initialize")
        source, target = (self._names_or_cell((*trail, key), rule.get(key)) for key in ("from", "to"))
        initializer = self._initializer((*trail, "initialize"), rule.get("initialize"))
        common = (
            index,
            self.document.where(trail),
            rule.get("as") == "constant",
            rule.get("optional") is True,
        )
        if fills:
            self._no_operations(trail, rule, "a rule with initialize")
            if "slots" in rule:
                self._fail((*trail, "slots"), "a rule with initialize has no slots", "what is new has none")
            if isinstance(target, tuple):
                self._no_arithmetic(target, "nothing is bound that could be computed with")
            if initializer is None or target is None or moves:
                return None
            cell = target if isinstance(target, CellRef) else None
            return InitRule(*common, target if isinstance(target, tuple) else (), cell, initializer)
        kinds = {isinstance(rule[key], dict) for key in ("from", "to") if isinstance(rule.get(key), (str, list, dict))}
        if len(kinds) == 2:
            side = "from" if isinstance(rule["from"], dict) else "to"
            self._fail(trail, f"a cell in {side} only", "both sides name a layout, or neither")
            return None
        if kinds == {True}:
            self._no_operations(trail, {k: v for k, v in rule.items() if k != "vocab"}, "a rule for a cell")
            vocab = self._operations(trail, {"vocab": rule["vocab"]}).vocab if "vocab" in rule else None
            if vocab is not None and "axis" in rule["vocab"]:
                self._fail((*trail, "vocab", "axis"), "a cell's words are its inputs", "leave the axis out")
            if not isinstance(source, CellRef) or not isinstance(target, CellRef):
                return None
            self._same_cell(trail, source, target)
            return CellRule(*common, source, target, slots=rule.get("slots") is True, vocab=vocab)
        ops = self._operations(trail, rule)
        sources = source if isinstance(source, tuple) else None
        targets = target if isinstance(target, tuple) else None
        self._numbers(trail, rule, ops)
        if sources is not None:
            self._no_arithmetic(sources, "bind the number itself here, and compute in to")
            self._bound("from[0]" if isinstance(rule["from"], list) else "from", sources, targets or ())
        if not sources or not targets:
            return None
        return TensorRule(*common, sources, targets, ops, slots=rule.get("slots") is True)

    def _names_or_cell(self, trail: Trail, value: Any) -> tuple[Pattern, ...] | CellRef | None:
        """What ``from`` or ``to`` is; None if it is missing or wrong, which has been noted."""
        if isinstance(value, dict):
            return self._cell(trail, value)
        if isinstance(value, str):
            places: list[tuple[Trail, Any]] = [(trail, value)]
        elif isinstance(value, list):
            places = [((*trail, k), text) for k, text in enumerate(value)]
        else:
            return None
        found = []
        for place, text in places:
            if self.shape.ok(*place):
                try:
                    found.append(Pattern(text, self.document.where(place)))
                except MappingError as error:
                    self.document.problems += error.problems
        return tuple(found) if len(found) == len(places) and self.shape.ok(*trail) else None

    def _no_operations(self, trail: Trail, rule: dict[str, Any], what: str) -> None:
        for key in OPERATIONS:
            if key in rule:
                self._fail((*trail, key), f"{what} has no {key}", "operations are for tensors that are moved by name")

    def _no_arithmetic(self, patterns: tuple[Pattern, ...], hint: str) -> None:
        for pattern in patterns:
            for name in sorted(pattern.computed):
                problem = f"arithmetic with {{{name}}} in {shown(pattern.text)}"
                self.document.problems.append(Problem(pattern.where, problem, hint))

    def _numbers(self, trail: Trail, rule: dict[str, Any], ops: Ops) -> None:
        """Several names on a side need the operation that makes one of them, and one name must not have it."""
        for key, operation, advice in (
            ("from", "concat", "say along which axis they are joined: concat: 0"),
            ("to", "split", "say along which axis it is cut: split: 0"),
        ):
            value = rule.get(key)
            if not isinstance(value, (str, list)) or not value:
                continue
            count = 1 if isinstance(value, str) else len(value)
            if count > 1 and operation not in rule and trail not in self.shape.loose:
                self._fail((*trail, key), f"{count} names and no {operation}", advice)
            elif count == 1 and operation in rule:
                self._fail((*trail, operation), f"{operation} with one name in {key}", f"{operation} needs several")
        sizes = ops.split.sizes if ops.split is not None else None
        to = rule.get("to")
        if sizes is not None and isinstance(to, list) and 1 < len(to) != len(sizes):
            self._fail((*trail, "split", "sizes"), f"{len(sizes)} sizes for {len(to)} names in to")

    def _bound(self, place: str, sources: tuple[Pattern, ...], targets: tuple[Pattern, ...]) -> None:
        """The first source binds the names that all the others use, each in the same form."""
        first = sources[0]
        for pattern in (*sources[1:], *targets):
            for name in sorted(pattern.names):
                if name not in first.names:
                    hint = closest(name, first.names) or _captures(place, first)
                    what = f"{{{name}}} is not bound in {place}"
                elif (name in pattern.wide) != (name in first.wide) and name not in pattern.computed:
                    form = f"{{{name}**}}" if name in first.wide else f"{{{name}}}"
                    what, hint = f"{shown(pattern.text)} has {{{name}}} in another form", f"{place} has {form}"
                else:
                    continue
                self.document.problems.append(Problem(pattern.where, what, hint))

    # --- cells --------------------------------------------------------------------------------------------------------

    def _cell(self, trail: Trail, value: dict[str, Any]) -> CellRef | None:
        before = len(self.document.problems)
        layout = self._layout((*trail, "layout"), value.get("layout"))
        if layout is not None:
            self._overrides(trail, value, layout)
        for key in ("layers", "directions"):
            entries = value.get(key)
            if self.shape.ok(*trail, key) and isinstance(entries, list) and len(set(entries)) < len(entries):
                self._fail((*trail, key), f"{described_list(entries)} has an entry twice")
        if layout is None or len(self.document.problems) > before or not self.shape.ok(*trail):
            return None
        gates, layers, directions = value.get("gates"), value.get("layers"), value.get("directions")
        bias = value.get("forget_bias")
        return CellRef(
            where=self.document.where(trail),
            layout=value["layout"],
            scope=value["scope"],
            forget_bias=None if bias is None else float(bias),
            gates=tuple(gates) if isinstance(gates, list) else gates,
            activation=value.get("activation"),
            recurrent_activation=value.get("recurrent_activation"),
            reset=value.get("reset"),
            layers=(layers,) if isinstance(layers, int) else None if layers is None else tuple(layers),
            directions=(directions,)
            if isinstance(directions, str)
            else None
            if directions is None
            else tuple(directions),
            sizes={"layers": 1, "directions": 1, **value["sizes"]} if "sizes" in value else None,
        )

    def _layout(self, trail: Trail, name: Any) -> Layout | None:
        if name is None or not self.shape.ok(*trail):
            return None
        try:
            return find_layout(name, self.layouts)
        except LayoutError:
            own = self.data.get("layouts")
            if not isinstance(own, dict) or name not in own:  # else its own table is wrong, which has been noted
                known = {**builtin(), **self.layouts}
                hint = closest(name, known) if len(name) <= 100 else ""
                self._fail(trail, f"no layout {shown(name)}", hint or "weightport layouts lists them")
            return None

    def _overrides(self, trail: Trail, value: dict[str, Any], layout: Layout) -> None:
        """What a rule says about a cell must be something that this kind of cell has."""
        if "gates" in value and self.shape.ok(*trail, "gates"):
            try:
                layout.with_gates(value["gates"])
            except LayoutError as error:
                for problem in error.problems:
                    self._fail((*trail, "gates"), problem.what, problem.hint)
        # Only of the kinds that are known by meaning: where a rarer cell has a reset gate, its table says no more.
        resets = layout.kind not in ("lstm", "rnn")
        for key, has, owner in (
            ("forget_bias", bool(layout.forget_gates), "a forget gate"),
            ("reset", resets, "a reset gate"),
        ):
            if key in value and not has:
                self._fail((*trail, key), f"{layout.name} is no cell with {owner}")

    def _same_cell(self, trail: Trail, source: CellRef, target: CellRef) -> None:
        one, other = (find_layout(side.layout, self.layouts) for side in (source, target))
        if not one.related(other):
            what = f"{source.layout} is a cell of another kind than {target.layout}"
            self._fail(trail, what, f"one is {one.kind}, the other {other.kind}: no conversion is exact")
        for key in ("layers", "directions"):
            ours, theirs = getattr(source, key), getattr(target, key)
            if ours is not None and theirs is not None and len(ours) != len(theirs):
                self._fail(trail, f"{len(ours)} {key} in from and {len(theirs)} in to")

    # --- initializers and operations ----------------------------------------------------------------------------------

    def _initializer(self, trail: Trail, value: Any) -> Initializer | None:
        if not isinstance(value, (str, dict)) or not self.shape.ok(*trail):
            return None
        name, args = settled(*((value, {}) if isinstance(value, str) else next(iter(value.items()))))
        problems = check_arguments(name, args)
        for what, hint in problems:
            self._fail(trail, what, hint)
        return None if problems else Initializer(name, args)

    def _operations(self, trail: Trail, rule: dict[str, Any]) -> Ops:
        given: dict[str, Any] = {}
        for key in OPERATIONS:
            if key not in rule or not self.shape.ok(*trail, key):
                continue
            try:
                given[key] = self._vocab((*trail, key), rule[key]) if key == "vocab" else _PARSERS[key](rule[key])
            except operations.Wrong as error:
                self._fail((*trail, key), *error.args)
        return Ops(**given)

    def _vocab(self, trail: Trail, value: dict[str, Any]) -> Vocab:
        source, target = (self._words((*trail, key), value[key]) for key in ("from", "to"))
        missing = value.get("missing")
        if missing is not None and missing != "mean":
            missing = self._initializer((*trail, "missing"), missing)
        (old, old_text, old_columns), (new, new_text, new_columns) = source, target
        return Vocab(old, new, value.get("axis", 0), missing, old_text, new_text, old_columns, new_columns)

    def _words(self, trail: Trail, value: str | dict[str, Any]) -> tuple[str, str, Columns | None]:
        """A file of words, as the mapping spells it, and what its columns are."""
        if isinstance(value, str):
            return self._file(trail, value), value, None
        columns = Columns(value.get("word", 0), value.get("row"), value.get("header"))
        if columns.word == columns.row:
            self._fail((*trail, "row"), f"column {columns.row} has the words")
        return self._file((*trail, "file"), value["file"]), value["file"], columns

    def _file(self, trail: Trail, text: str) -> str:
        """The file's absolute path, or nothing, which has been noted."""
        try:
            return places.file_beneath(self.document.folder, text)
        except operations.Wrong as error:
            self._fail(trail, *error.args)
            return ""


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "dequantize": bool,
    "concat": int,
    "slice": operations.parse_slices,
    "reshape": operations.parse_reshape,
    "rearrange": operations.parse_rearrange,
    "pad": operations.parse_pad,
    "scale": float,
    "cast": operations.parse_cast,
    "split": operations.parse_split,
}


def described_list(entries: list[Any]) -> str:
    """A list as a message shows it."""
    return shown(", ".join(str(e) for e in entries))[1:-1]


def _captures(place: str, pattern: Pattern) -> str:
    names = ", ".join(f"{{{name}}}" for name in sorted(pattern.names))
    return f"{place} binds {names or 'nothing'}"


def _placed(problem: Problem, where: str) -> Problem:
    """A layout's problem whose message begins with its own place."""
    if not problem.where and problem.what.startswith(where):
        place, _, what = problem.what[len(where) :].partition(": ")
        return Problem(where + place, what, problem.hint)
    return problem
