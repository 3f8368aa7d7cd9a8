"""moto's S3 in this process, on loopback and a free port: a real server as far as a client can see.

Its data is in this process: two servers show the same buckets, also when one is stopped and another started. What is
put between the socket and moto (``between``) makes a server that is broken in one way.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from typing import Any, Self

from moto.moto_server.threaded_moto_server import ThreadedMotoServer
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

__all__ = ["App", "MotoServer"]

App = Callable[[dict[str, Any], Any], Any]
BUCKET = "agents"


class _Silent(MotoRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


class _OneByOne:
    """moto compares and stores in two steps, and S3 in one."""

    _lock = threading.Lock()  # the data is that of the process, so all servers share it

    def __init__(self, app: App) -> None:
        self.app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        with self._lock:
            return list(self.app(environ, start_response))


class MotoServer(ThreadedMotoServer):
    """``with MotoServer() as server:`` and ``ObjectStore(f"s3://{server.bucket}/prefix", **server.options)``."""

    bucket = BUCKET

    def __init__(self, between: Callable[[App], App] = lambda app: app) -> None:
        super().__init__("127.0.0.1", 0, verbose=False)
        app = between(_OneByOne(DomainDispatcherApplication(create_backend_app)))  # type: ignore[no-untyped-call]
        self._server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Silent)
        self._server.daemon_threads = True

    def _server_entry(self) -> None:
        self._server_ready_event.set()
        assert self._server
        self._server.serve_forever(poll_interval=0.02)

    @property
    def port(self) -> int:
        return int(self.get_host_and_port()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def options(self) -> dict[str, Any]:
        return self.options_at(self.port)

    def options_at(self, port: int) -> dict[str, Any]:
        """What a client needs that comes by another port, such as a proxy's."""
        return {
            "endpoint": f"http://127.0.0.1:{port}",
            "region": "us-east-1",
            "access_key_id": "tests",
            "secret_access_key": "hush-hush",
            "client_options": {"allow_http": True},
        }

    def make_bucket(self, name: str = BUCKET) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("PUT", f"/{name}")
            assert connection.getresponse().status == 200
        finally:
            connection.close()

    def __enter__(self) -> Self:
        self.start()
        self.make_bucket()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()
        assert self._server
        self._server.server_close()
