"""Durable calls where each flush takes two milliseconds longer: what a disk in a cloud feels like.

A small library built here from C is loaded before the C library and delays `fsync` and `fdatasync`. Everything else
is as in [Durable calls](#durable-calls).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from ._load import scratch, skip_unless
from ._measure import Row, Scale, Team
from .durable_calls import SIZES, compare
from .peers import durable_tasks

__all__ = ["TITLE", "build", "run_all"]

TITLE = "A slow disk"
SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

typedef int (*flush)(int);

static int later(const char *name, int descriptor) {
    struct timespec delay = {0, 2000000};
    nanosleep(&delay, NULL);
    return ((flush)dlsym(RTLD_NEXT, name))(descriptor);
}

int fsync(int descriptor) { return later("fsync", descriptor); }
int fdatasync(int descriptor) { return later("fdatasync", descriptor); }
"""


def run_all(team: Team, scale: Scale) -> list[Row]:
    rows = []
    with team.with_environment({"LD_PRELOAD": str(build())}) as slow:
        for agents in scale.pick(SIZES, (32,)):
            arguments = {"agents": agents, "seconds": scale.seconds}
            peers = durable_tasks(**arguments) if agents == 32 else {}
            peers.pop("DBOS", None)  # a second for each of its calls
            row = compare(slow, agents, {**arguments, "loop": "asyncio"}, peers)
            rows.append(row.want(10, "casty").want(10, "LangGraph"))
    return rows


def build() -> Path:
    """Compile the library that makes flushes slow."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    skip_unless(compiler is not None, "no C compiler: sudo apt-get install gcc libc6-dev (Debian, Ubuntu)")
    folder = scratch()
    source, library = folder / "slow.c", folder / "slow.so"
    source.write_text(SOURCE)
    subprocess.run([str(compiler), "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    return library
