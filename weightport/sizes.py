"""Numbers of bytes, as people write and read them."""

from __future__ import annotations

import re

from weightport.errors import Error


def size(nbytes: int) -> str:
    """Bytes for people: ``1.5 MB`` (decimal units)."""
    amount = float(nbytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kKMGT]?)(i?)[bB]?")


def bytes_of(text: str | int) -> int:
    """The number of bytes that a size is: ``2GB``, ``500 MB``, ``1.5GiB``, ``4096``.

    Raises:
        Error: it is no size, or less than one byte.
    """
    match = _SIZE.fullmatch(str(text).strip())
    if match is None or (match[3] and not match[2]):
        raise Error(f"{text!r} is no size: expected a number of bytes such as 2GB, 500MB or 1GiB")
    amount = int(float(match[1]) * (1024 if match[3] else 1000) ** " kMGT".index(match[2].replace("K", "k") or " "))
    if amount < 1:
        raise Error(f"{text!r} is less than one byte")
    return amount
