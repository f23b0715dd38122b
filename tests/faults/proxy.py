"""A real HTTP proxy on loopback, before an MLflow server, that can be told to misbehave."""

from __future__ import annotations

import socket
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.faults.postgres import free_port

PASSED_ON = ("content-type", "content-length", "accept")


class Proxy:
    """Stands before a server, from the `with` block's begin to its end.

    Args:
        server: its address, `http://HOST:PORT`.
    """

    def __init__(self, server: str) -> None:
        self.behind = urlsplit(server).netloc
        self.answers_500 = False
        self.waits_s = 0.0
        self.refuses = ""
        """Answers 413, as to what is too large, to requests whose address ends so."""
        self.loses, self.loses_from = 0, b""
        """So many answers are lost, from the first request on that holds those bytes."""
        self._listening: ThreadingHTTPServer | None = None
        self._port = free_port()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Proxy:
        self.come_back()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_away()

    def go_away(self) -> None:
        """Refuse connections, as an address does where nobody listens."""
        if self._listening is not None:
            self._listening.shutdown()
            self._listening.server_close()
            self._listening = None

    def come_back(self) -> None:
        """Be well again, on the same port."""
        self.answers_500, self.waits_s, self.refuses = False, 0.0, ""
        if self._listening is None:
            self._listening = _Server(("127.0.0.1", self._port), _handler(self))
            threading.Thread(target=self._listening.serve_forever, args=(0.05,)).start()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves before it has its answer is no news."""


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            too_large = bool(proxy.refuses) and self.path.endswith(proxy.refuses)
            if proxy.answers_500 or too_large:
                self.send_error(413 if too_large else 500)
                return
            time.sleep(proxy.waits_s)
            headers = {k: v for k, v in self.headers.items() if k.lower() in PASSED_ON}
            try:
                connection = HTTPConnection(proxy.behind, timeout=60)
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, socket.timeout):
                self.close_connection = True  # without a word, as where a server died
                return
            if proxy.loses > 0 and proxy.loses_from in body:
                proxy.loses, proxy.loses_from = proxy.loses - 1, b""
                self.close_connection = True
                return
            self.send_response(answer.status)
            self.send_header("content-type", answer.getheader("content-type", "text/plain"))
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler
