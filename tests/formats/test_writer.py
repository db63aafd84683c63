"""The writer of a format, which is told what it takes, and says what it cannot do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from weightport.formats import _writer
from weightport.formats._writer import Writer
from weightport.tensors import TensorSpec

SPECS = {"v": TensorSpec.of("float32", (2,))}


@pytest.fixture
def made() -> Iterator[ModuleType]:
    """A module of the formats that has nothing yet."""
    found = ModuleType("weightport.formats._made")
    sys.modules[found.__name__] = found
    yield found
    del sys.modules[found.__name__]


def tiles(name: str) -> Any:
    raise AssertionError(name)


def test_a_writer_is_told_what_it_takes(made: Any) -> None:
    told: dict[str, Any] = {}

    def plain(path: str, specs: Any, tiles: Any, *, metadata: Any, like: str) -> None:
        told.update(path=path, specs=specs, tiles=tiles, metadata=metadata, like=like)

    def more(path: str, specs: Any, tiles: Any, *, metadata: Any, like: str, constants: Any, kept: Any) -> None:
        plain(path, specs, tiles, metadata=metadata, like=like)
        told.update(constants=constants, kept=kept)

    made.write = plain
    write = Writer("_made", {"like": "m"})
    write("o", SPECS, tiles, metadata={"a": "b"}, constants={"c"}, kept={"d"})
    expected = {"path": "o", "specs": SPECS, "tiles": tiles, "metadata": {"a": "b"}, "like": "m"}
    assert told == expected
    made.write = more
    write("o", SPECS, tiles, constants={"c"}, kept={"d"})
    assert told == {**expected, "metadata": None, "constants": {"c"}, "kept": {"d"}}


def test_a_check_before_anything_is_written(made: Any) -> None:
    told: dict[str, Any] = {}
    Writer("_made").check("o", SPECS, constants={"c"}, kept={"d"})
    made.check = lambda path, specs, kept: told.update(path=path, specs=specs, kept=kept)
    Writer("_made").check("o", SPECS, constants={"c"}, kept={"d"})
    assert told == {"path": "o", "specs": SPECS, "kept": {"d"}}
    made.check = lambda path, specs, constants: told.update(path=path, specs=specs, constants=constants)
    Writer("_made").check("p", SPECS, constants={"c"}, kept={"d"})
    assert told == {"path": "p", "specs": SPECS, "kept": {"d"}, "constants": {"c"}}


def test_files_that_are_there(made: Any) -> None:
    write, like = Writer("_made"), Writer("_made", {"like": "m"})
    assert not write.adopts
    assert write.adopt("o", SPECS, {}, link=True) == (
        "the format of the new file has its values and its header in one file"
    )
    taken: list[Any] = []

    def adopt(*given: Any, link: bool, metadata: Any = None) -> None:
        assert metadata is None
        taken.append((*given, link))
        if link:
            raise OSError(18, "Invalid cross-device link") if given[0] == "o" else OSError("of its own making")

    made.adopt = adopt
    assert write.adopts
    assert not like.adopts
    assert like.adopt("o", SPECS, {}, link=False) == "the new file is to be as another one, or in shards of a size"
    assert taken == []
    assert write.adopt("o", SPECS, {}, link=False) == ""
    assert write.adopt("o", SPECS, {}, link=True) == "the file system cannot do it: Invalid cross-device link"
    assert write.adopt("p", SPECS, {}, link=True) == "the file system cannot do it: of its own making"
    assert taken == [("o", SPECS, {}, False), ("o", SPECS, {}, True), ("p", SPECS, {}, True)]


def test_writing_by_ranges(made: Any) -> None:
    class Ranged:
        def __call__(self, *_: Any, **__: Any) -> None: ...

        def destination(self, path: str, specs: Any, tiles: Any, *, metadata: Any = None, **more: Any) -> Any:
            return path, specs, tiles, metadata, more

    made.write = lambda *_, **__: None
    assert Writer("_made").destination("o", SPECS, tiles) is None
    made.write = Ranged()
    found: Any = Writer("_made", {"like": "m"}).destination("o", SPECS, tiles, metadata={"a": "b"})
    assert found == ("o", SPECS, tiles, {"a": "b"}, {"kept": None, "like": "m"})


def test_modules_by_name() -> None:
    assert _writer.module("npz").__name__ == "weightport.formats.npz"
