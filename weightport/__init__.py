"""weightport moves pretrained weights, RNN gates included, between model files and live models."""

from __future__ import annotations

from weightport.errors import Error

__all__ = ["Error"]
__version__ = "0.1.0"
