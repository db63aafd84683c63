"""What every command prints, and how: text for people, one JSON document for scripts, diagnostics on stderr.

Promise: with ``--json`` nothing but the document goes to stdout. No control character of a model file or a mapping
reaches a terminal as it is; what the terminal cannot show is spelled out. Colours and bars are for terminals only.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO, TypeVar

import click

from weightport.errors import Problem, printable

F = TypeVar("F", bound=Callable[..., Any])

_ASCII = str.maketrans({"├": "|", "└": "`", "│": "|", "─": "-", "×": "x", "→": "->", "·": "-"})
#: A bar is drawn if the work takes longer than this many seconds.
_PATIENCE = 1.0


def counted(number: int, what: str) -> str:
    """``1 tensor``, ``2,000 tensors``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@dataclass(slots=True)
class Session:
    """One run of a command.

    Attributes:
        json: ``--json``.
        debug: ``--debug``.
        document: what ``--json`` prints beside ``problems`` if the command fails.
        verdict: what a failure comes to, said after its problems.
    """

    json: bool = False
    debug: bool = False
    document: dict[str, Any] = field(default_factory=dict)
    verdict: str = ""

    def line(self, text: str = "", **style: Any) -> None:
        """A line of text on stdout; ``style`` as :func:`click.style` takes it."""
        _write(sys.stdout, text, style)

    def lines(self, lines: Iterable[str]) -> None:
        """Lines of text on stdout."""
        for line in lines:
            _write(sys.stdout, line, {})

    def raw(self, text: str) -> None:
        """Text that is known to be printable, as it is."""
        if sys.stdout is not None:
            sys.stdout.write(text)

    def tell(self, text: str, **style: Any) -> None:
        """A diagnostic on stderr."""
        _write(sys.stderr, f"weightport: {text}", style)

    def problems(self, problems: Iterable[Problem]) -> None:
        """Problems on stderr, a line each."""
        for problem in problems:
            self.tell(str(problem), fg="red")

    def warnings(self, warnings: Iterable[Problem]) -> None:
        """Warnings on stderr, a line each."""
        for warning in warnings:
            self.tell(f"warning: {warning}", fg="yellow")

    def emit(self, document: Mapping[str, Any]) -> None:
        """The JSON document on stdout."""
        for part in json_parts(document):
            self.raw(part)

    def fail(self, problems: Sequence[Problem]) -> None:
        """All that a failed command prints."""
        self.flush()
        self.problems(problems)
        if self.verdict:
            self.tell(f"{counted(len(problems), 'problem')}; {self.verdict}")
        if self.json:
            self.emit({**self.document, "problems": [p.as_json() for p in problems]})
            self.flush()

    def flush(self) -> None:
        """Write out what is buffered: a full disk or a closed pipe shows now."""
        if sys.stdout is not None:
            sys.stdout.flush()


def _write(stream: TextIO | None, text: str, style: Mapping[str, Any]) -> None:
    if stream is None:  # closed by the caller
        return
    text = printable(text)
    encoding = stream.encoding or "ascii"
    if not text.isascii() and encoding.lower().replace("-", "") != "utf8":
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    if style and coloured(stream):
        text = click.style(text, **style)
    stream.write(text + "\n")


def coloured(stream: TextIO) -> bool:
    """Whether colours may be used: a terminal, and ``NO_COLOR`` (https://no-color.org) is not set."""
    return not os.environ.get("NO_COLOR") and on_terminal(stream)


def on_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal that can do more than print."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def json_parts(document: Mapping[str, Any]) -> Iterator[str]:
    """A JSON document, piece by piece: each key on its own line, each item of its lists of objects too.

    A value may be an iterator of items.
    """
    before = "{"
    for key, value in document.items():
        yield f"{before}{json.dumps(key)}: "
        before = ",\n "
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            yield _json(value)
            continue
        opened = False
        for item in value:
            yield (",\n  " if opened else "[\n  ") + _json(item)
            opened = True
        yield "]" if opened else "[]"
    yield "}\n" if before != "{" else "{}\n"


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


# Options -------------------------------------------------------------------------------------------------------------


def _set(name: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            # The group's own options are read before there is a session.
            target = ctx.find_root()
            target.meta[f"weightport.{name}"] = True
            if isinstance(target.obj, Session):
                setattr(target.obj, name, True)

    return callback


debug_option: Callable[[F], F] = click.option(
    "--debug", is_flag=True, expose_value=False, callback=_set("debug"), help="Print the traceback of an error."
)
json_option: Callable[[F], F] = click.option(
    "--json", is_flag=True, expose_value=False, callback=_set("json"), help="Print one JSON document on stdout."
)


def common(command: F) -> F:
    """The options that every command has, and its session as the first argument."""
    return json_option(debug_option(click.pass_obj(command)))  # type: ignore[return-value]


def _distrust(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from weightport.opening import distrust

        ctx.with_resource(distrust())


untrusted_option: Callable[[F], F] = click.option(
    "--untrusted", is_flag=True, expose_value=False, callback=_distrust,
    help="Let the libraries of HDF5 and of Orbax' arrays run in a process that may crash, hang or run out of memory.",
)  # fmt: skip


def reads_models(command: F) -> F:
    """As :func:`common`, of a command that opens model files."""
    return untrusted_option(common(command))


def split_named(text: str) -> tuple[str, str]:
    """``NAME=PATH`` as its parts; the name is empty where there is none."""
    name, equals, path = text.partition("=")
    return (name, path) if equals and re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) else ("", text)


def _named(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for value in values:
        name, path = split_named(value)
        if not name or not path:
            raise click.BadParameter(f"{value!r} is not NAME=PATH", ctx, param)
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice", ctx, param)
        found[name] = path
    return found


named_sources: Callable[[F], F] = click.option(
    "--source", "sources", multiple=True, metavar="NAME=PATH", callback=_named,
    help="Where a further source is, that the mapping names under sources:. May be repeated.",
)  # fmt: skip


def _digest(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    from weightport.integrity import is_digest

    if not is_digest(value):
        raise click.BadParameter("expected 64 hexadecimal digits, as sha256sum prints them", ctx, param)
    return value


expected_digest: Callable[[F], F] = click.option(
    "--expect-sha256", metavar="H", callback=_digest,
    help="Refuse a SOURCE with another digest (of one file: what sha256sum prints; of several: see inspect --digest).",
)  # fmt: skip


# Progress ------------------------------------------------------------------------------------------------------------


class Progress:
    """A bar of bytes on stderr, on a terminal and for work that lasts.

    Attributes:
        total: how many bytes there will be; may be set late.
    """

    def __init__(self, what: str, total: int = 0) -> None:
        self.total = total
        self._what, self._done, self._bar = what, 0, None
        self._shown = on_terminal(sys.stderr)
        self._started = time.monotonic()

    def __call__(self, nbytes: int) -> None:
        """So many bytes more are done."""
        self._done += nbytes
        if not self._shown:
            return
        if self._bar is None:
            if time.monotonic() - self._started < _PATIENCE:
                return
            self._bar = self._drawn()
        else:
            self._bar.update(nbytes)

    def _drawn(self) -> Any:
        from tqdm import tqdm  # not needed by most commands, nor in a pipe

        return tqdm(
            desc=self._what, total=self.total or None, initial=self._done, unit="B", unit_scale=True, leave=False,
            file=sys.stderr,
        )  # fmt: skip

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
