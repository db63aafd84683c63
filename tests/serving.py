"""Models elsewhere: in memory, and on a server of HTTP that counts what it is asked for and errs as it is told."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.support import need
from weightport.formats import _fs, _remote


@dataclass
class Served:
    """What a server has, how it behaves, and what it was asked.

    Attributes:
        files: path without the first slash -> content; folders are pages that list them.
        ranges: whether it answers with byte ranges.
        statuses: path -> what it answers instead, from the front; the last one for good.
        asked: every request: its method, path and range.
        sent: bytes of bodies.
        needs: what the query, or the authorization, has to contain.
    """

    files: dict[str, bytes] = field(repr=False)
    url: str = ""
    ranges: bool = True
    statuses: dict[str, list[int]] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    sent: int = 0
    needs: str = ""

    def gets(self) -> list[tuple[str, str]]:
        """Path and range of what was fetched."""
        return [(path, span) for method, path, span in self.asked if method == "GET"]


@contextmanager
def in_memory(patch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty file system in memory (fsspec's), and nothing placed yet; no request is waited for."""
    patch.setattr(_fs, "_places", {})
    patch.setattr(_fs, "_typed", {})
    patch.setattr(_remote, "WAIT", 0)
    fs = need("fsspec").filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[Served]:
    """Serve files on 127.0.0.1 as long as the block lasts."""
    served = Served(dict(files))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path, _, query = self.path.partition("?")
            name = path[1:]
            served.asked.append((self.command, name, self.headers.get("Range", "")))
            told = served.statuses.get(name)
            status = (told.pop(0) if len(told) > 1 else told[0]) if told else 200
            if served.needs and served.needs not in query + self.headers.get("Authorization", ""):
                status = 403
            if status == 0:  # the connection breaks
                self.close_connection = True
                self.connection.close()
                return
            folder = name == "" or name.endswith("/")
            beneath = {f[len(name) :].split("/")[0] + "/" * ("/" in f[len(name) :]) for f in served.files
                       if f.startswith(name)}  # fmt: skip
            if status != 200 or (name not in served.files and not (folder and beneath)):
                if status == 200 and any(f.startswith(name + "/") for f in served.files):
                    self.send_response(301)
                    self.send_header("Location", f"/{name}/")
                else:
                    self.send_response(status if status != 200 else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = served.files.get(name, b"")
            if folder:
                data = "".join(f'<a href="{n}">{n}</a>\n' for n in sorted(beneath)).encode()
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            size = len(data)
            if span and served.ranges and not folder:
                data = data[int(span[1]) : int(span[2]) + 1]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {span[1]}-{int(span[1]) + len(data) - 1}/{size}")
            else:
                self.send_response(200)
            self.send_header("Content-Type", "text/html" if folder else "application/octet-stream")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hash(served.files.get(name))}"')
            self.end_headers()
            if body:
                served.sent += len(data)  # before, so that who has them all finds them counted
                try:
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client may go away whenever it likes."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        served.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
