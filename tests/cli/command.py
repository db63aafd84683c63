"""Runs the command in this process."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner, Result

from weightport.cli.app import cli


class Ran:
    """What a command printed, and its exit code."""

    def __init__(self, result: Result) -> None:
        self.code = result.exit_code
        self.out: str = result.stdout
        self.err: str = result.stderr

    @property
    def json(self) -> Any:
        """Standard output, which has to be one JSON document."""
        return json.loads(self.out)

    @property
    def told(self) -> list[str]:
        """The lines on stderr, without what stands before each of them."""
        lines = self.err.splitlines()
        assert all(line.startswith("weightport: ") for line in lines), self.err
        return [line.removeprefix("weightport: ") for line in lines]


def weightport(*arguments: object, code: int = 0) -> Ran:
    """Run ``weightport ARGUMENTS``; it must exit with that code."""
    try:
        runner = CliRunner(mix_stderr=False)  # type: ignore[call-arg]
    except TypeError:  # click 8.2 and newer never mix them
        runner = CliRunner()
    ran = Ran(runner.invoke(cli, [str(a) for a in arguments], prog_name="weightport"))
    assert ran.code == code, f"{ran.out}\n{ran.err}"
    return ran
