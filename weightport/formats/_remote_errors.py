"""What file systems raise, as errors of weightport's.

Promise: what is not there, what may not be read and what the network lost are told apart, whatever library says so; no
message holds a user name, a password or a query of the URL. Limit: of other failures little more than their kind is
said.
"""

from __future__ import annotations

import re

from weightport.errors import FormatError


def _status(error: BaseException) -> int | None:
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def kind_of(error: Exception) -> Exception | None:
    """An error of the same kind that says nothing: the message may hold what is secret."""
    status = _status(error)
    if isinstance(error, FileNotFoundError | NotADirectoryError) or status in (404, 410):
        return FileNotFoundError()
    if isinstance(error, PermissionError) or status in (401, 403):
        return PermissionError()
    return None


def lost(error: Exception) -> bool:
    """Whether a request may go well the next time."""
    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError):
        return False
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"ClientConnectionError", "ClientPayloadError", "ConnectionError", "TimeoutError"})


def wrong(error: Exception, shown: str, url: str, done: str = "read") -> FormatError:
    """What a file system raised, in words without the secrets of the URL."""
    kind, status = kind_of(error), _status(error)
    if isinstance(kind, FileNotFoundError):
        return FormatError(shown, "no such file")
    told = f" (HTTP {status})" if status is not None else ""
    if isinstance(kind, PermissionError):
        return FormatError(shown, f"access denied{told}", hint="credentials are those that fsspec finds")
    if status is not None:
        return FormatError(shown, f"cannot be {done}: the server says{told}")
    said = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    said = re.sub(r"\S*://\S*", "...", str(said))
    for secret in filter(None, re.split(r"[:/?#@&=]+", url.partition("://")[2])):
        if len(secret) > 3 and secret not in shown:
            said = said.replace(secret, "...")
    return FormatError(shown, f"cannot be {done}: {type(error).__name__}{f': {said[:200]}' if said else ''}")
