"""The ``weightport`` command.

Promise: importing this costs nothing; a command loads what it uses when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line, by default this process's, and exit: 0 done, 1 refused or failed, 2 it is wrong."""
    from weightport.cli.app import cli

    cli.main(args=None if arguments is None else list(arguments), prog_name="weightport")
