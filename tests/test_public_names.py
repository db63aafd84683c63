"""What ``weightport`` offers stays what it is, whichever of its modules are imported later."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A submodule of the name of a function would take the function's place when it is imported.
CODE = """
import importlib, pkgutil
import weightport as wp
before = {name: getattr(wp, name) for name in wp.__all__}
for module in pkgutil.walk_packages(wp.__path__, "weightport."):
    if not module.name.startswith(("weightport.targets.", "weightport.__main__")):
        importlib.import_module(module.name)
print([name for name in wp.__all__ if getattr(wp, name) is not before[name]])
print([name for name in wp.__all__ if not hasattr(wp, name)])
print(callable(wp.plan), callable(wp.open), callable(wp.transfer), callable(wp.load_mapping))
"""


def test_no_submodule_takes_the_place_of_a_function() -> None:
    run = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["[]", "[]", "True True True True"]
