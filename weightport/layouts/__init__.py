"""How RNN cells are packed: the tables, the notation they are written in, and the conversion between any two of them.

Promise: a packing is data; nothing here reads a file or knows a framework.
"""

from __future__ import annotations

from weightport.layouts.layout import Form, Layout, Row
from weightport.layouts.shipped import builtin, find_layout
from weightport.layouts.table import parse_layout

__all__ = ["Form", "Layout", "Row", "builtin", "find_layout", "parse_layout"]
