"""Carries out a plan: the only step that touches tensor bytes.

Values are made tile by tile, for whoever asks (:mod:`.reader`), or written to their places in a new file by tasks that
any executor can run (:mod:`.files`, :mod:`.tasks`, :mod:`.boxes`). Checksums are verified on the way (:mod:`.ledger`).
"""

from __future__ import annotations

from weightport.execute.files import Progress, check_file, write_file
from weightport.execute.memory import live_values, value_of
from weightport.execute.reader import Reader
from weightport.execute.watch import Unchanged

__all__ = ["Progress", "Reader", "Unchanged", "check_file", "live_values", "value_of", "write_file"]
