"""How many changes of the code its tests notice: a sample of mutmut's mutants, and what came of those that ran.

``python scripts/mutation_score.py names --of 20`` prints the names of so many mutants of each module (of all, where
there are fewer), picked at random but the same for a ``--seed``, for ``mutmut run``; ``scores`` prints a Markdown table
of the mutants that have run so far and how many of them were noticed; the last row is an estimate for all mutants of
these modules, each module counted by its size. Both read ``mutants/``, which mutmut makes. Limit: a mutant that makes
no difference counts as one that was not noticed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from pathlib import Path
from random import Random

#: Exit codes of the tests with which a mutant was not noticed: all passed, or none ran it.
UNNOTICED = (0, 5, 33)


def modules(folder: Path) -> Iterator[tuple[str, Mapping[str, int | None]]]:
    """Each module's path, and its mutants by name with the exit code of the tests; None for one that has not run."""
    for path in sorted(folder.rglob("*.meta")):
        codes = json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
        if codes:
            yield path.relative_to(folder).as_posix().removesuffix(".meta"), codes


def sample(folder: Path, of: int, seed: int) -> list[str]:
    """Names of mutants that have not run: of each module as many as are missing to ``of``."""
    found: list[str] = []
    for module, codes in modules(folder):
        names = list(codes)
        Random(f"{seed} {module}").shuffle(names)
        found += [name for name in names[:of] if codes[name] is None]
    return found


def estimate(counts: Sequence[tuple[int, int, int]]) -> tuple[float, float]:
    """The share of all mutants that would be noticed, and how far off that may be (1.96 standard errors).

    Args:
        counts: of each module its mutants, those that ran, and those that were noticed.
    """
    everything = sum(total for total, _, _ in counts)
    share = variance = 0.0
    for total, ran, noticed in counts:
        weight, here = total / everything, noticed / ran
        share += weight * here
        variance += weight**2 * here * (1 - here) / ran * (1 - ran / total)
    return share, 1.96 * sqrt(variance)


def table(folder: Path) -> str:
    """All modules of which mutants ran, and the estimate for all of them."""
    lines = ["| module | mutants | run | noticed | score |", "|---|---|---|---|---|"]
    counts = []
    for module, codes in modules(folder):
        ran = [code for code in codes.values() if code is not None]
        if ran:
            noticed = sum(code not in UNNOTICED for code in ran)
            counts.append((len(codes), len(ran), noticed))
            lines.append(f"| `{module}` | {len(codes):,} | {len(ran):,} | {noticed:,} | {noticed / len(ran):.1%} |")
    if counts:
        share, off = estimate(counts)
        total, ran_of_all, noticed_of_all = (sum(column) for column in zip(*counts, strict=True))
        score = f"{share:.1%} ± {100 * off:.1f}"
        lines.append(f"| all of these | {total:,} | {ran_of_all:,} | {noticed_of_all:,} | {score} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["names", "scores"])
    parser.add_argument("--of", type=int, default=20, help="mutants of each module (default: 20)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("mutants"), help="what mutmut made (default: mutants)")
    given = parser.parse_args(arguments)
    print("\n".join(sample(given.folder, given.of, given.seed)) if given.what == "names" else table(given.folder))


if __name__ == "__main__":
    main()
