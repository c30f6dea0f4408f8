"""A web server on this machine that serves a folder, and fails in the ways that it is told to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FaultyServer(ThreadingHTTPServer):
    """Serves ``root``. ``plan`` says how the next requests end; after it, all end as ``always`` says."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.plan: list[str] = []
        self.always = "serve"
        self.asked: list[str] = []  # the paths of the requests so far
        self.is_over = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that go away early are what is tested."""


class Handler(BaseHTTPRequestHandler):
    server: FaultyServer

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        how = self.server.plan.pop(0) if self.server.plan else self.server.always
        getattr(self, f"do_{how}")()

    def body(self) -> bytes | None:
        path = self.server.root / self.path.lstrip("/")
        return path.read_bytes() if path.is_file() else None

    def start(self, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def do_serve(self) -> None:
        body = self.body()
        if body is None:
            return self.do_missing()
        self.start(Content_Length=len(body))
        self.wfile.write(body)

    def do_cut(self) -> None:
        body = self.body() or b""
        self.start(Content_Length=len(body))
        self.wfile.write(body[: len(body) // 2])

    def do_cut_without_length(self) -> None:
        body = self.body() or b""
        self.start()
        self.wfile.write(body[: len(body) // 2])

    def do_odd_length(self) -> None:
        self.start(Content_Length="many")
        self.wfile.write(self.body() or b"")

    def do_stall(self) -> None:
        body = self.body() or b""
        self.start(Content_Length=len(body))
        self.wfile.write(body[:100])
        self.wfile.flush()
        self.server.is_over.wait(30)

    def do_silent(self) -> None:
        self.server.is_over.wait(30)

    def do_garble(self) -> None:
        self.wfile.write(b"\x00\xff no status line\r\n\r\n")

    def do_garble_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length 12\xff\r\n: x\r\n\r\n" + bytes(40))

    def do_garble_chunks(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nnonsense\r\n")

    def do_garble_gzip(self) -> None:
        self.start(Content_Length=6, Content_Encoding="gzip")
        self.wfile.write(b"nozip!")

    def do_hang_up(self) -> None:
        pass

    def do_redirect(self) -> None:
        self.start(302, Location=self.path, Content_Length=0)

    def do_redirect_to_file(self) -> None:
        self.start(302, Location="file:///etc/passwd", Content_Length=0)

    def do_redirect_nowhere(self) -> None:
        self.start(302, Location="http://[", Content_Length=0)

    def do_page(self) -> None:
        body = b"\n<html>Please log in</html>"
        self.start(Content_Length=len(body))
        self.wfile.write(body)

    def do_missing(self) -> None:
        self.start(404, Content_Length=0)

    def do_busy(self) -> None:
        self.start(503, Content_Length=0)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def faulty_server(root: Path) -> Iterator[FaultyServer]:
    """A server of that folder, until the block ends."""
    server = FaultyServer(root)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.is_over.set()
        server.shutdown()
        server.server_close()
        thread.join()
