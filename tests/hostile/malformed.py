"""Files that lie about what they hold, and how reading each of them ends.

A case writes its files into a folder and says which of them to open; ``ends.yaml`` has the exact words that reading it
then ends with: the error of opening, or one line for each tensor that cannot be read. There, ``{path}`` is what was
opened, ``{folder}`` where it lies, and a star at the end is what a library that is not ours says. Checksums are right
wherever a format has them, so that what is wrong is met behind them. Cases are in ``malformed_*.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

Files = Mapping[str, bytes]

#: Name of a case -> how reading it ends.
ENDS: dict[str, str] = yaml.safe_load((Path(__file__).parent / "ends.yaml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Malformed:
    """One case.

    Attributes:
        name: format and what is wrong.
        opened: the file or folder to open, in the case's folder.
        build: gives its files: path in the folder -> content.
    """

    name: str
    opened: str
    build: Callable[[], Files]

    def write(self, folder: Path) -> Path:
        """Make the files; returns what to open."""
        for name, content in self.build().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder / self.opened

    def told(self, folder: Path, said: str) -> str:
        """What reading it in that folder ended with, as ``ends.yaml`` has it."""
        said = said.replace(str(folder / self.opened), "{path}").replace(str(folder), "{folder}")
        expected = ENDS.get(self.name, "")
        return expected if expected.endswith("*") and said.startswith(expected[:-1]) else said


class Family:
    """The cases of one format: each has one file, unless it says otherwise."""

    def __init__(self, format: str, opened: str) -> None:
        self.format, self.opened = format, opened
        self.cases: list[Malformed] = []

    def add(self, what: str, build: Callable[[], bytes | Files], *, opened: str | None = None) -> None:
        """Enter a case.

        Args:
            what: what is wrong with it.
            build: gives the file, or the files.
            opened: what to open, if it is another file.
        """

        def files() -> Files:
            made = build()
            return made if isinstance(made, Mapping) else {self.opened: made}

        self.cases.append(Malformed(f"{self.format}: {what}", opened or self.opened, files))


def cases() -> Iterator[Malformed]:
    """All of them."""
    from tests.hostile import (
        malformed_archives,
        malformed_checkpoints,
        malformed_graphs,
        malformed_hdf5,
        malformed_plain,
    )

    for module in (malformed_checkpoints, malformed_graphs, malformed_archives, malformed_hdf5, malformed_plain):
        for family in module.FAMILIES:
            yield from family.cases
