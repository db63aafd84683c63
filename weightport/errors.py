"""The error family: every failure a user can meet is a :class:`Error` that says where, what and the nearest fix.

Promise: nothing else leaves weightport for a bad input, a bad mapping or a missing package. Limit: a bug in weightport
itself is not dressed up as one of these. What a message quotes of a file or a mapping is spelled by :func:`printable`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

# difflib is quadratic in the worst case: a hint is not worth more than this many comparisons.
_MAX_CANDIDATES = 20_000
# Characters that Unicode counts as letters or marks, and that no font draws: fillers, joiners, variation selectors.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def printable(text: str, keep: str = "") -> str:
    """The text with escapes (``\\x1b``, ``\\n``, ``\\u202e``) for all that a terminal or a page would act on.

    That is every control character, line separators, what reverses the direction of text or has no width, and what is
    drawn as nothing at all. Nothing else changes, so that a text that was spelled stays as it is.

    Args:
        keep: characters that are no harm where the text goes.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or _is_seen(c) else c.encode("unicode_escape").decode() for c in text)


def _is_seen(character: str) -> bool:
    return character.isprintable() and not _UNSEEN.match(character)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where it stands, what was found, and the nearest fix (may be empty)."""

    where: str
    what: str
    hint: str = ""

    def __post_init__(self) -> None:
        # Names from files stand in all three, and messages end on terminals, in logs and on pages.
        for part in ("where", "what", "hint"):
            object.__setattr__(self, part, printable(getattr(self, part)))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}; {self.hint}" if self.hint else text

    def as_json(self) -> dict[str, str]:
        """The problem as the JSON documents of the commands print it."""
        return {"where": self.where, "what": self.what, "hint": self.hint}


class Error(Exception):
    """The root of the family. ``problems`` holds every problem that was found, not just the first."""

    def __init__(self, message: str | Problem | Sequence[Problem]) -> None:
        if isinstance(message, str):
            self.problems: tuple[Problem, ...] = (Problem("", message),)
        elif isinstance(message, Problem):
            self.problems = (message,)
        else:
            self.problems = tuple(message)
        super().__init__("\n".join(str(p) for p in self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        # Raised in another process, it has to arrive as it was; the constructors take other arguments.
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[Error], args: tuple[Any, ...], state: dict[str, Any]) -> Error:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class FormatError(Error):
    """A model file is missing, truncated, corrupt, or not what it claims to be.

    Args:
        path: the file.
        what: what was found, and what was expected.
        tensor: the tensor being read, if there is one.
        offset: the byte offset in ``path`` at which the problem stands, if it is known.
        hint: the nearest fix.
    """

    def __init__(
        self, path: object, what: str, *, tensor: str | None = None, offset: int | None = None, hint: str = ""
    ) -> None:
        self.path, self.tensor, self.offset = str(path), tensor, offset
        where = self.path
        if tensor is not None:
            where += f": tensor {tensor!r}"
        if offset is not None:
            where += f" at byte {offset}"
        super().__init__(Problem(where, what, hint))


class TensorNotFound(Error):
    """A name that a model does not have. The message lists the closest names that it does have."""

    def __init__(self, name: str, candidates: Iterable[str], where: str) -> None:
        self.name = name
        super().__init__(Problem(where, f"no tensor {name!r}", closest(name, candidates)))


class MappingError(Error):
    """A mapping file or dict is wrong. One :class:`Problem` per mistake, each with its line.

    Attributes:
        partial: the mapping that the valid rules make up, so that these can be checked against the models all the same;
            None where nothing can be made of it.
    """

    partial: Any = None

    def joined(self, found: Iterable[Problem]) -> tuple[Problem, ...]:
        """The mistakes, and what was found with :attr:`partial` that is wrong with a rule itself.

        What the valid rules leave over is no mistake: the rules that could not be read may have been for it.
        """
        return (*self.problems, *(p for p in found if "rules[" in p.where and p not in self.problems))


class PlanError(Error):
    """A mapping does not fit the source or the target: nothing was written."""


class LayoutError(Error):
    """A layout table is wrong, or does not fit the tensors of a cell."""


class RefusedError(Error):
    """weightport could do it, but not without risk of harm or loss: the message says what to do instead."""


class ConditionError(PlanError, RefusedError):
    """The mapping fits and is exact for some values of the source, but not for those it has: nothing was written."""


class MissingPackage(Error):
    """An optional package is needed for this job and is not installed."""

    def __init__(self, job: str, package: str, extra: str = "", *, install: str = "") -> None:
        found = f"'weightport[{extra}]'" if extra else install
        super().__init__(Problem("", f"{job} needs {package}", f"pip install {found}" if found else ""))


class BudgetExceeded(FormatError):
    """A file asks for more than the reader's :class:`~weightport.tensors.Budget` allows."""


def closest(name: str, candidates: Iterable[str]) -> str:
    """The hint ``closest: 'a', 'b'`` for a name that was not found, or an empty string if nothing is near."""
    pool = []
    for candidate in candidates:
        pool.append(candidate)
        if len(pool) >= _MAX_CANDIDATES:
            break
    if len(pool) > 2_000:
        # Long lists: only names that share a leaf or a length are worth the comparison.
        leaf = name.rsplit("/", 1)[-1]
        pool = [c for c in pool if c.endswith(leaf) or abs(len(c) - len(name)) <= 2][:2_000]
    import difflib  # not needed as long as all goes well

    near = difflib.get_close_matches(name, pool, n=3, cutoff=0.6)
    if not near:  # what is spelled in capitals is not near to what is not
        folded = {c.casefold(): c for c in pool}
        near = [folded[c] for c in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.6)]
    if not near:
        leaf = name.rsplit("/", 1)[-1]
        near = [c for c in pool if c.rsplit("/", 1)[-1] == leaf][:3]
    return "closest: " + ", ".join(repr(c) for c in near) if near else ""
