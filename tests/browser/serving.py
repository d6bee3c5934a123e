"""The book, served to this machine alone."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, asked: list[str], **options: Any) -> None:
        self._asked = asked
        super().__init__(*args, **options)

    def log_message(self, format: str, *args: Any) -> None:
        self._asked.append(self.path)


class Server:
    """A server of a folder's files, which can be stopped, and started again at the same address.

    Attributes:
      folder: whose files.
      asked: the paths that it was asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self._port = 0
        self.start()

    @property
    def address(self) -> str:
        """`http://127.0.0.1:…/`"""
        return f"http://127.0.0.1:{self._port}/"

    def start(self) -> None:
        handler = functools.partial(_Handler, directory=str(self.folder), asked=self.asked)
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
