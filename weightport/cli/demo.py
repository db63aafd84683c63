"""``weightport demo``: what the demo does, as it does it.

Promise: exit code 1 if the moved weights do not compute what the pretrained model computes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from weightport.cli.output import Session, common
from weightport.cli.transfer import outcome
from weightport.errors import Error

if TYPE_CHECKING:
    from weightport.demo import Demo, Run


@click.command(short_help="Do the main job on a small pretrained model.")
@click.option("--keep", metavar="DIR", help="Put the demo's files there, and leave them.")
@click.option(
    "--live/--no-live", default=None, help="Also (never) in a live TensorFlow graph. Default: if it is installed."
)
@common
@click.pass_context
def demo(ctx: click.Context, session: Session, keep: str | None, live: bool | None) -> None:
    """Do the main job on a small pretrained model that comes with weightport.

    A character LSTM with one scope per gate is looked at, moved into Keras' layout by a mapping, and set to write with
    its old and its new weights. Where TensorFlow is installed, it is moved into a live variable scope too. Takes a few
    seconds, and no network.

    \b
    Example:
        weightport demo
        weightport demo --keep demo && weightport inspect demo/keras.npz
    """
    from weightport.demo import Demo
    from weightport.demo.char_lstm import PROMPT, WRITTEN
    from weightport.demo.live import installed

    session.document = {"agree": False}
    with _folder(keep) as folder:
        work = Demo(folder)
        _before(ctx, session, work)
        result = work.transfer()
        if not session.json:
            session.lines(str(result).splitlines())
            outcome(session, result)
            _title(session, "4. Both models write, each by the equations of its own packing")
        runs = {"source": work.source(), "moved": work.moved()}
        facts: dict[str, Any] = {}
        _compared(session, runs["source"], {"as trained": runs["source"], "moved": runs["moved"]})
        if live if live is not None else installed():
            if not session.json:
                _title(session, "5. The same in a live TensorFlow variable scope")
            try:
                runs["live"], facts = work.live()
            except ImportError as error:
                what = f"TensorFlow cannot be imported: {error}"
                if live:
                    raise Error(what) from error
                session.tell(f"{what}; that step is left out", fg="yellow")
            else:
                _live(session, facts)
                _compared(session, runs["source"], {"live": runs["live"]})
    agree = all(run.agrees(runs["source"]) for run in runs.values()) and runs["source"].text == WRITTEN
    if session.json:
        differences = {name: run.difference(runs["source"]) for name, run in runs.items() if name != "source"}
        texts = {name: run.text for name, run in runs.items()}
        extra = {"live": facts or None, "kept": keep}
        session.emit({"agree": agree, "prompt": PROMPT, "texts": texts, "max_abs_diff": differences, **extra})
    elif agree:
        session.line()
        session.line("The moved weights compute what the pretrained model computes.", fg="green")
    if not agree:
        session.tell("the moved weights do not compute what the pretrained model computes", fg="red")
        session.flush()
        ctx.exit(1)


@contextmanager
def _folder(keep: str | None) -> Iterator[str]:
    if keep is not None:
        yield keep
    else:
        with tempfile.TemporaryDirectory(prefix="weightport-demo-") as folder:
            yield folder


def _title(session: Session, text: str) -> None:
    session.line()
    session.line(text, bold=True)


def _before(ctx: click.Context, session: Session, work: Demo) -> None:
    """The model and the mapping."""
    if session.json:
        return
    from weightport.cli.inspect import inspect

    session.line("1. A pretrained model: a character LSTM, trained on the Gettysburg Address", bold=True)
    session.line(f"$ weightport inspect {work.model}", dim=True)
    ctx.invoke(inspect, model=work.model, scope=None, stats=False, full=False)
    _title(session, "2. The mapping")
    session.lines(work.mapping_text().splitlines())
    _title(session, "3. The transfer")
    session.line(f"$ weightport transfer {work.model} -m {work.mapping} -o {work.out}", dim=True)


def _live(session: Session, facts: dict[str, Any]) -> None:
    if not session.json:
        session.line(
            f"TensorFlow {facts['tensorflow']}, variable_scope(custom_getter=weightport.tensorflow.getter(...))"
        )
        session.line(f"constants, nothing to train: {', '.join(facts['constants'])}")
        session.line(f"variables, born with their pretrained values: {', '.join(facts['variables'])}")


def _compared(session: Session, source: Run, runs: dict[str, Run]) -> None:
    if session.json:
        return
    for name, run in runs.items():
        session.line(f"  {name:<10}  {run.text}")
    steps = len(source.logits)
    last = list(runs.values())[-1]
    session.line(f"greatest difference of the logits in {steps} steps: {last.difference(source):.1e}")
