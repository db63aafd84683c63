"""``weightport transfer``: weights from one file into another.

Promise: the plan is printed whether it is carried out or not; with any problem, nothing is written. Limit: files only;
a live model is the Python interface's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from weightport.cli.output import Progress, Session, counted, expected_digest, named_sources, reads_models

if TYPE_CHECKING:
    from weightport.api import Result
    from weightport.plan import Plan


def _format(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    from weightport.errors import closest
    from weightport.formats.detect import WRITERS

    if value is not None and value not in WRITERS:
        hint = closest(value, WRITERS) or f"known: {', '.join(WRITERS)}"
        raise click.BadParameter(f"{value!r} cannot be written; {hint}", ctx, param)
    return value


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    from weightport.errors import Error
    from weightport.sizes import bytes_of

    try:
        return None if value is None else bytes_of(value)
    except Error as error:
        raise click.BadParameter(str(error), ctx, param) from None


@click.command(short_help="Move weights from one file into a new one.")
@click.argument("source")
@click.argument("target", required=False)
@click.option("-m", "--mapping", required=True, metavar="FILE", help="The mapping: which weights go where.")
@click.option("-o", "--out", metavar="OUT", help="The file to write. Required, but for --dry-run.")
@click.option(
    "--format", metavar="F", callback=_format,
    help="OUT's format, where its name does not say: npz, safetensors, keras-h5, torch, flax-msgpack, ...",
)  # fmt: skip
@named_sources
@click.option(
    "--shard-size", metavar="SIZE", callback=_size,
    help="Write OUT in several files of at most this size (2GB), where its format has that: tf-checkpoint and "
    "safetensors-index (OUT ends in .safetensors.index.json; there 5GB, unless said otherwise).",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Check everything and print the plan; write nothing.")
@click.option("--reverse", is_flag=True, help="Run the mapping backwards: SOURCE is what it was made for.")
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N",
    help="At most so many threads write OUT. By default as many as there are processors, up to a few.",
)  # fmt: skip
@click.option(
    "--cluster", metavar="ADDRESS",
    help="The workers of a cluster write OUT: a scheduler of dask.distributed (tcp://HOST:8786, or its file), or "
    "local:N for N processes here. They need the same files under the same paths.",
)  # fmt: skip
@click.option("--link", is_flag=True, help="Where nothing but names changes: hard links to SOURCE's data, no copy.")
@click.option(
    "--resume", is_flag=True,
    help="Should it fail or be killed, leave what is written; and go on with what an earlier run with --resume left, "
    "if SOURCE, TARGET, the mapping and the options are the same. For .safetensors, .npz, .pt and checkpoints.",
)  # fmt: skip
@expected_digest
@click.option("--locked", is_flag=True, help="Refuse anything that is not as the mapping's lock file says.")
@click.option(
    "--lock", metavar="LOCK", help="The lock file, if it is not the one beside the mapping; implies --locked."
)
@reads_models
def transfer(
    session: Session,
    source: str,
    target: str | None,
    mapping: str,
    out: str | None,
    format: str | None,
    sources: dict[str, str],
    shard_size: int | None,
    dry_run: bool,
    reverse: bool,
    threads: int | None,
    cluster: str | None,
    link: bool,
    resume: bool,
    expect_sha256: str | None,
    locked: bool,
    lock: str | None,
) -> None:
    """Move weights from SOURCE into a new file OUT, as the mapping says.

    TARGET describes the new model: its names, shapes and dtypes, and its own values for what the mapping keeps. It is
    only read. Without TARGET, OUT holds exactly what the mapping produces.

    OUT is an .npz, .safetensors, .pt, .h5 or .msgpack file, or a TensorFlow checkpoint (tf-checkpoint:PREFIX, or a name
    that ends in .ckpt). With a TARGET of that kind it is a .keras, an .onnx, a .pb, a .meta or the folder of a
    SavedModel, too, and a graph's variables can become constants. It is the old file until the new one is complete.
    Each of the three may be a URL (s3://, gs://, https://), of which the byte ranges are fetched that are needed.

    Every tensor of SOURCE, every tensor of TARGET and every rule has to be accounted for; otherwise all that is amiss
    is listed, nothing is written, and the exit code is 1.

    Where a cell moves exactly for some values only (peepholes of zero, into a cell without), these values are looked at
    first, also with --dry-run; others are refused in the same way.

    With --reverse, fine-tuned weights go back into the format and the names that they came from: SOURCE is the new
    model, TARGET the original file. A rule that cannot be undone is an error before anything is read.

    \b
    Example:
        weightport transfer model.ckpt-1000 new_model.h5 -m mapping.yaml --dry-run
        weightport transfer model.ckpt-1000 new_model.h5 -m mapping.yaml -o pretrained.h5
        weightport transfer frozen.pb -m mapping.yaml -o tf-checkpoint:out/model
    """
    if out is None and not dry_run:
        raise click.UsageError("Missing option '-o' / '--out': the file to write (or --dry-run).")
    from weightport.api import load_mapping
    from weightport.api import transfer as move

    session.document = {"rules": [], "source": {}, "target": {}, "bytes": 0}
    session.verdict = "the destination is as it was" if resume else "nothing was written"
    with Progress("writing") as progress:

        def planned(plan: Plan) -> None:
            progress.total = _bytes(plan)
            if session.json:
                session.document = plan.as_json()
            else:
                from weightport.plan.text import lines

                # The problems go to stderr, as those of an error do.
                session.lines(lines(replace(plan, problems=())))

        options: dict[str, Any] = {"out": out, "format": format, "sources": sources, "expect_sha256": expect_sha256}
        options["locked"] = lock or locked
        options |= {"shard_size": shard_size, "threads": threads, "cluster": cluster, "link": link}
        options["resume"] = resume and session.tell
        result = move(
            source,
            target,
            load_mapping(mapping).reversed() if reverse else mapping,
            progress=progress,
            on_plan=planned,
            dry_run=dry_run,
            **options,
        )
    if session.json:
        session.emit(result.as_json())
        return
    outcome(session, result)


def outcome(session: Session, result: Result) -> None:
    """The lines that follow the plan's."""
    if result.integrity is not None:
        session.line(str(result.integrity))
    if result.path is not None:
        from weightport.sizes import size

        if result.resumed is not None and result.resumed.found:
            there, moved = size(result.resumed.found), size(result.resumed.moved)
            session.line(f"resumed: {there} were there and are as they were written, {moved} were moved")
        session.line(f"wrote {result.path}: {counted(len(result.plan.specs), 'tensor')}, {size(_bytes(result.plan))}")
    else:
        session.line("dry run: nothing was written")


def _bytes(plan: Plan) -> int:
    """Bytes of the values in the result, kept ones included."""
    return sum(spec.nbytes for name, spec in plan.specs.items() if plan.target.get(name) != "uncovered")
