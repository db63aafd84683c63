"""The command group: which commands there are, and what becomes of an error.

Promise: an error is one line for each problem on stderr, an exit code, and with ``--json`` a document all the same; a
traceback is printed for ``--debug`` only. A reader that closes the pipe early (``| head``) is no error worth a word.
Limit: what the command line itself gets wrong is click's to report (exit code 2, text only).
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from weightport import __version__
from weightport.cli.output import Session, debug_option
from weightport.errors import Error, Problem, closest

#: Command -> the module that has it. They are imported when they are called, or listed.
COMMANDS = {
    "inspect": "inspect",
    "transfer": "transfer",
    "verify": "verify",
    "suggest": "suggest",
    "lint": "lint",
    "diff": "diff",
    "report": "report",
    "lock": "lock",
    "layouts": "layouts",
    "schema": "layouts",
    "demo": "demo",
}
FAILED = 1
# As a shell says it of a process that a signal ended: 128 + SIGINT, 128 + SIGPIPE, 128 + SIGTERM.
INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143


class Commands(click.Group):
    """The commands, each loaded on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order in which a user meets them."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; an unknown one is a usage error with the closest names."""
        if cmd_name in COMMANDS:
            found: click.Command = getattr(importlib.import_module(f"weightport.cli.{COMMANDS[cmd_name]}"), cmd_name)
            return found
        if not ctx.resilient_parsing:
            near = closest(cmd_name, COMMANDS) or f"commands: {', '.join(COMMANDS)}"
            ctx.fail(f"No such command {cmd_name!r}; {near}")
        return None

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, and turn what it raises into a message and an exit code."""
        # What a termination interrupts cleans up behind itself, as after Ctrl-C.
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, _terminated)
        ctx.obj = session = Session(debug=bool(ctx.meta.get("weightport.debug")))
        with _errors(session):
            result = super().invoke(ctx)
            session.flush()
            return result


def _terminated(*_: Any) -> NoReturn:
    sys.exit(TERMINATED)


@contextmanager
def _errors(session: Session) -> Iterator[None]:
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except KeyboardInterrupt:
        if session.debug:
            traceback.print_exc()
        session.tell("interrupted")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _leave_quietly()
    except OSError as error:
        if error.errno == errno.EPIPE:
            _leave_quietly()
        _failed(session, [Problem(_file_of(error), error.strerror or str(error) or type(error).__name__)])
    except Error as error:
        _failed(session, error.problems)
    except MemoryError:
        _failed(session, [Problem("", "out of memory")])
    except Exception as error:
        what = f"a bug in weightport: {type(error).__name__}: {error}"
        _failed(session, [Problem("", what, "please report it with what --debug prints")])


def _file_of(error: OSError) -> str:
    name = error.filename
    return os.fsdecode(name) if isinstance(name, str | bytes) else ""


def _failed(session: Session, problems: tuple[Problem, ...] | list[Problem]) -> NoReturn:
    if session.debug:
        traceback.print_exc()
    session.fail(problems)
    sys.exit(FAILED)


def _leave_quietly() -> NoReturn:
    # What is still buffered would be written, and fail again, when the interpreter shuts down.
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            try:
                os.dup2(null, stream.fileno())
            except (OSError, ValueError, AttributeError):
                continue
    sys.exit(BROKEN_PIPE)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="weightport COMMAND --help explains a command, with an example.",
)
@click.version_option(__version__, prog_name="weightport", message="%(prog)s %(version)s")
@debug_option
def cli() -> None:
    """Move pretrained weights, RNN gates included, from any checkpoint or frozen graph into a new model.

    A small YAML mapping says what goes where. Reading needs no framework, and nothing in a model file is ever run.

    \b
    Look at a model, check a mapping, move the weights, prove it:
        weightport inspect model.ckpt-1000
        weightport transfer model.ckpt-1000 new_model.h5 -m mapping.yaml --dry-run
        weightport transfer model.ckpt-1000 new_model.h5 -m mapping.yaml -o pretrained.h5
        weightport verify model.ckpt-1000 pretrained.h5 -m mapping.yaml

    Exit codes: 0 done; 1 refused or failed, nothing was written; 2 the command line is wrong.
    """
