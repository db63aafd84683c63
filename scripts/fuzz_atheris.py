"""A reader under libFuzzer, guided by the coverage of weightport's own code: ``fuzz_readers.py --engine atheris``.

Limit: it mutates the first file of the reader's first specimen, and ends at the first finding; atheris is no
dependency.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random


def guided(reader: str, executions: int, folder: Path) -> None:
    """Run until libFuzzer ends: never returns."""
    import atheris

    with atheris.instrument_imports(include=["weightport"]):
        from fuzz_worker import Place, exercise, opener, specimens
    from framed import mutated

    path, files = specimens(reader)[0]
    name, place, opened = next(iter(files)), Place(folder / "files"), opener(reader)
    place.put(files)

    def one(data: bytes) -> None:
        place.put({name: data})
        exercise(opened, str(place.folder / path))

    def changed(data: bytes, largest: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(data, largest))
        return mutated(rng, reader, name, data or files[name])[:largest]

    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    (corpus / "first").write_bytes(files[name])
    argv = [sys.argv[0], f"-runs={executions}", "-timeout=20", "-max_len=24000", str(corpus)]
    atheris.Setup(argv, one, custom_mutator=changed)
    atheris.Fuzz()
