"""What file systems raise: told apart by kind, asked again if that may help, and said without secrets."""

from __future__ import annotations

import pytest

from tests.support import says
from weightport.errors import FormatError
from weightport.formats._remote_errors import kind_of, lost, wrong


class Answer(Exception):
    """An error with the status of an answer by HTTP."""

    def __init__(self, status: object, said: str = "secret") -> None:
        super().__init__(said)
        self.status = status


class ClientConnectionError(Exception):
    """As aiohttp calls it."""


class ServerDisconnectedError(ClientConnectionError):
    """A kind of it."""


class ClientPayloadError(Exception):
    """As aiohttp calls it, too."""


MISSING = [FileNotFoundError(2, "secret"), NotADirectoryError(20, "secret"), Answer(404), Answer(410)]
DENIED = [PermissionError(13, "secret"), Answer(401), Answer(403)]
OTHER = [
    OSError(5, "secret"),
    Answer(400),
    Answer(402),
    Answer(405),
    Answer(409),
    Answer(411),
    Answer(500),
    Answer("404"),
]


@pytest.mark.parametrize("error", MISSING)
def test_what_is_not_there(error: Exception) -> None:
    found = kind_of(error)
    assert (type(found), found and found.args) == (FileNotFoundError, ())
    with says(FormatError, "shown: no such file"):
        raise wrong(error, "shown", "s3://secret/x")


@pytest.mark.parametrize("error", DENIED)
def test_what_may_not_be_read(error: Exception) -> None:
    found = kind_of(error)
    assert (type(found), found and found.args) == (PermissionError, ())
    told = f" (HTTP {error.status})" if isinstance(error, Answer) else ""
    with says(FormatError, f"shown: access denied{told}; credentials are those that fsspec finds"):
        raise wrong(error, "shown", "s3://secret/x")


@pytest.mark.parametrize("error", OTHER)
def test_what_is_neither(error: Exception) -> None:
    assert kind_of(error) is None


@pytest.mark.parametrize(
    ("error", "again"),
    [
        *((error, False) for error in (*MISSING, *DENIED)),
        (Answer(408), True),
        (Answer(407), False),
        (Answer(409), False),
        (Answer(428), False),
        (Answer(429), True),
        (Answer(430), False),
        (Answer(499), False),
        (Answer(500), True),
        (Answer(503), True),
        (Answer("503"), False),
        (IsADirectoryError(), False),
        (ConnectionError(), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (ClientConnectionError(), True),
        (ServerDisconnectedError(), True),
        (ClientPayloadError(), True),
        (OSError(5, "x"), False),
        (ValueError(), False),
    ],
)
def test_what_may_go_well_the_next_time(error: Exception, again: bool) -> None:
    assert lost(error) is again


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(5, "input of user hidden at https://user:hidden@host/x"), "OSError: input of user ... at ..."),
        (OSError(5, "gs://a twice gs://b"), "OSError: ... twice ..."),
        (RuntimeError("bucket-key\nand more"), "RuntimeError: bucket-key"),
        (RuntimeError("\nmore"), "RuntimeError"),
        (RuntimeError(), "RuntimeError"),
        (ValueError("x" * 300), f"ValueError: {'x' * 200}"),
        (ValueError("the word is keyy, other says"), "ValueError: the word is ..., ... says"),
        (ValueError("of three letters: abc"), "ValueError: of three letters: abc"),  # no secret, or a bad one
        (Answer(500, "hidden"), "the server says (HTTP 500)"),
        (Answer(409, "hidden"), "the server says (HTTP 409)"),
    ],
)
@pytest.mark.parametrize("done", ["read", "written"])
def test_messages_hold_no_secrets(error: Exception, said: str, done: str) -> None:
    url = "s3://other:hidden@user/bucket-key/m?a=keyy&b=abc#x"
    found = wrong(error, "s3://user/bucket-key/m", url, done)
    assert (type(found), str(found)) == (FormatError, f"s3://user/bucket-key/m: cannot be {done}: {said}")
    if done == "read":
        assert str(wrong(error, "s3://user/bucket-key/m", url)) == str(found)
