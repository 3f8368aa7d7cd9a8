"""The database file: who may open it, what is in it, and what SQLite's errors mean.

This file knows apsw and the schema. It does not know threads, batches or event loops, and it never puts a text of
SQLite's into an error: only the names of result codes, since a text could quote what is stored.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import apsw

from ..errors import CorruptRecordError, StateTooLargeError, StoreUnavailableError, UsageError
from ._flock import check_owned

__all__ = [
    "MOVED",
    "busy",
    "certain_identity",
    "code_name",
    "connect",
    "definite_commit",
    "disconnect",
    "identity",
    "initialise",
    "patiently",
    "prepare",
    "refusal",
    "run",
    "worth_splitting",
    "write_log_anew",
]

APPLICATION_ID = 0x4F565754  # "OVWT", so that `file` and we can tell whose database it is
FORMAT = 1
_COLUMNS = ["id", "key", "revision", "data"]
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE agents(id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, revision BLOB NOT NULL, data BLOB NOT NULL);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
COMMIT;
"""
_PIECE = 1024 * 1024  # bytes of the log that are read at once
_NAP = 0.005
_SHORT_NAP = 0.001
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

MOVED = "{} was moved or replaced while in use: put it back, or restart"

_connections: dict[int, apsw.Connection] = {}


def _leak_in_child() -> None:
    """Make the inherited connections immortal.

    Closing one in a forked child could wait for ever for a mutex that a thread of the parent held, drop the
    POSIX locks of the parent's pages, or delete a WAL that the parent writes to. Leaking them harms nobody.
    """
    for connection in _connections.values():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
    _connections.clear()


os.register_at_fork(after_in_child=_leak_in_child)


def prepare(path: str) -> None:
    """Check the file and its folder, and create the file, for its owner only, if there is none.

    The file is never opened here when it exists: closing any descriptor of it would release the POSIX locks that
    another connection of this process holds. SQLite gives -wal and -shm the mode of the file.
    """
    folder = Path(path).parent
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder} for the store {Path(path).name}: create it first")
    if folder.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
        raise UsageError(f"every user may write to {folder}, and put files in the place of ours: chmod 700 it")
    for suffix in ("-wal", "-shm", "-journal"):
        check_owned(path + suffix)
    if check_owned(path):
        return
    log = Path(f"{path}-wal")
    if log.exists() and log.stat().st_size:
        raise UsageError(
            f"{path} is gone and {log}, which holds acknowledged changes of it, is not: "
            "put the file back, or move the -wal file away to start empty"
        )
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)  # the name is durable too before anything is acknowledged
        finally:
            os.close(descriptor)
    except FileExistsError:
        check_owned(path)  # another process was faster
    except OSError as error:
        raise StoreUnavailableError(
            f"{path} can't be created ({os.strerror(error.errno or 0)}): "
            "the store needs a folder that this process may write to, with space left"
        ) from None


def identity(path: str) -> tuple[int, int] | None:
    """Which file is there now. What is written to a file that lost its name is acknowledged and gone."""
    try:
        status = os.stat(path)  # noqa: PTH116  # once per batch, and a Path takes longer than that
    except OSError:
        return None
    return status.st_dev, status.st_ino


def certain_identity(path: str) -> tuple[int, int]:
    """Which file is there as a store is opened: without that, it would never again find the file that it opened."""
    found = identity(path)
    if found is None:
        raise StoreUnavailableError(f"{path} can't be looked at, or is gone: see the disk, and open it again")
    return found


def connect(path: str) -> apsw.Connection:
    """Open a connection that never waits and never checkpoints by itself."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW
    connection = apsw.Connection(path, flags=flags, statementcachesize=64)
    _connections[id(connection)] = connection
    try:
        connection.set_busy_timeout(0)
        # A checkpoint, and closing the last connection is one, needs our lock between processes; see Writer.
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.wal_autocheckpoint(0)
        run(connection, "PRAGMA synchronous = FULL; PRAGMA cell_size_check = ON; PRAGMA trusted_schema = OFF")
    except BaseException:
        disconnect(connection)
        raise
    return connection


def write_log_anew(connection: apsw.Connection, path: str, deadline: float) -> None:
    """Make durable what is in the log, left by a writer that was killed before it was flushed, or whose flush failed.

    Recovery takes it for committed and does not flush it: a get would tell, and a put be added to, what a power loss
    takes back. To flush it is not enough, for after a flush that failed the kernel calls the pages clean. No POSIX
    lock is on the log, so it may be opened here; SQLite's lock keeps others from changing it meanwhile.
    """
    patiently(lambda: run(connection, "BEGIN IMMEDIATE"), deadline)
    try:
        descriptor = os.open(f"{path}-wal", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            offset = 0
            while part := os.pread(descriptor, _PIECE, offset):
                offset += os.pwrite(descriptor, part, offset)
            if offset:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        code = apsw.SQLITE_FULL if error.errno in _DISK_FULL else apsw.SQLITE_IOERR_FSYNC
        raise apsw.exception_for(code) from error
    finally:
        run(connection, "ROLLBACK")


def run(connection: apsw.Connection, sql: str, values: Sequence[str | bytes | None] = ()) -> apsw.Cursor:
    return connection.execute(sql, values)  # pyright: ignore[reportUnknownMemberType]  # apsw leaves a type open


def disconnect(connection: apsw.Connection) -> None:
    """Close it, whatever state it is in."""
    _connections.pop(id(connection), None)
    try:
        connection.close(True)
    except apsw.Error:
        return  # a rollback that failed on a broken disk; apsw has let go of the handle all the same


def initialise(connection: apsw.Connection, path: str, deadline: float) -> None:
    """Recognise our database or make an empty one ours; leave anybody else's as it is. Call it under the lock."""
    while True:
        try:
            return _initialise(connection, path)
        except (apsw.BusyError, apsw.LockedError):
            if connection.in_transaction:
                run(connection, "ROLLBACK")
            if time.monotonic() >= deadline:
                raise
            time.sleep(_NAP)


def _initialise(connection: apsw.Connection, path: str) -> None:
    owner = run(connection, "PRAGMA application_id").get
    version = run(connection, "PRAGMA user_version").get
    tables = run(connection, "SELECT count(*) FROM sqlite_schema").get
    if owner == APPLICATION_ID and version > FORMAT:
        raise UsageError(
            f"{path} has format {version} and this overwinter knows format {FORMAT}: "
            "upgrade overwinter; the file is left as it is"
        )
    if owner != APPLICATION_ID and (owner or version or tables):
        raise UsageError(f"{path} is a database of another program: use another path; the file is left as it is")
    if owner and [row[1] for row in run(connection, "PRAGMA table_info(agents)")] != _COLUMNS:
        raise CorruptRecordError(
            f"{path} has no table of agents of format {FORMAT}: restore a backup; it is left as it is"
        )
    if run(connection, "PRAGMA journal_mode = wal").get != "wal":
        raise StoreUnavailableError(f"{path} can't use a write-ahead log: put the store on a local file system")
    if not owner:
        run(connection, _SCHEMA)


# ---------------------------------------------------------------- what errors mean


def code_name(error: Exception) -> str:
    """The name of the result code, such as SQLITE_IOERR_FSYNC."""
    code = _code(error)
    return str(
        apsw.mapping_extended_result_codes.get(code) or apsw.mapping_result_codes.get(code) or type(error).__name__
    )


def _code(error: Exception) -> int:
    code: int = getattr(error, "extendedresult", 0)  # apsw's errors that don't come from SQLite have none
    return code


def busy(error: apsw.Error) -> bool:
    return isinstance(error, apsw.BusyError | apsw.LockedError)


def patiently(action: Callable[[], object], deadline: float) -> None:
    """Repeat *action* while a program that doesn't know our lock, such as the shell, is in the way."""
    while True:
        try:
            action()
        except apsw.Error as error:
            if not busy(error) or time.monotonic() >= deadline:
                raise
        else:
            return
        time.sleep(_SHORT_NAP)


def worth_splitting(error: Exception) -> bool:
    """Whether the error may be one row's, so that the others of its batch deserve a try without it."""
    return not isinstance(
        error,
        apsw.BusyError | apsw.LockedError | apsw.IOError | apsw.ReadOnlyError | apsw.CantOpenError | apsw.NotADBError,
    )


def definite_commit(error: apsw.Error, connection: apsw.Connection) -> bool:
    """Whether a COMMIT that failed so has certainly not happened.

    A write that failed because the file could not grow left the log without its last page, which is the one that
    makes a transaction count. After any other I/O error, a failed fsync first of all, recovery may find it whole.
    """
    if isinstance(
        error, apsw.FullError | apsw.BusyError | apsw.LockedError | apsw.ReadOnlyError | apsw.ConstraintError
    ):
        return True
    return _code(error) == apsw.SQLITE_IOERR_WRITE and connection.system_errno in _DISK_FULL


def refusal(error: Exception, path: str, subject: str = "") -> Exception:
    """The error of ours for something that certainly did not happen."""
    what = f"{path}, {subject}" if subject else path
    if isinstance(error, apsw.CorruptError | apsw.NotADBError):
        return CorruptRecordError(
            f"the database is damaged ({code_name(error)}): {what}. Restore a backup; it is left as it is"
        )
    if isinstance(error, apsw.TooBigError):
        return StateTooLargeError(f"the record is larger than SQLite can store: {what}. Keep less in one agent")
    if isinstance(error, apsw.FullError) or _code(error) in {apsw.SQLITE_IOERR_WRITE, apsw.SQLITE_IOERR_SHMSIZE}:
        return StoreUnavailableError(
            f"the disk is full, a quota is used up, or it fails ({code_name(error)}): {what}. "
            "Make space; nothing was stored, and later calls will work again"
        )
    if isinstance(error, apsw.ReadOnlyError | apsw.CantOpenError):
        return StoreUnavailableError(
            f"the file can't be opened for writing ({code_name(error)}): {what}. "
            "See that it is there, and that this process may write to it and its folder"
        )
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return StoreUnavailableError(f"another program keeps the database locked: {what}. End it, or raise timeout=")
    name = code_name(error) if isinstance(error, apsw.Error) else type(error).__name__
    return StoreUnavailableError(f"SQLite refused ({name}): {what}. Nothing was stored; see the system's log")
