"""What machine it is: what is needed to judge figures, and nothing that names it."""

from __future__ import annotations

import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import apsw

from ._load import scratch

__all__ = ["machine"]


def machine() -> dict[str, Any]:
    folder = scratch()
    return {
        "cpu": _first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "file_system": _file_system(folder),
        "fdatasync_us": _flush(folder),
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
    }


def _first(path: str, name: str) -> str:
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _file_system(folder: Path) -> str:
    """The kind of file system that *folder* is on: that of the longest mount point above it."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(len(point), kind) for point, kind in mounts if f"{folder}/".startswith(f"{point.rstrip('/')}/")]
    return max(above)[1]


def _flush(folder: Path) -> float:
    """Median microseconds of an fdatasync after a write of 4 KB over what is there."""
    path = folder / "flush"
    path.write_bytes(bytes(4096))
    descriptor = os.open(path, os.O_WRONLY)
    spent = []
    for _ in range(200):
        os.pwrite(descriptor, os.urandom(4096), 0)
        begin = time.perf_counter()
        os.fdatasync(descriptor)
        spent.append(time.perf_counter() - begin)
    os.close(descriptor)
    return round(statistics.median(spent) * 1e6)
