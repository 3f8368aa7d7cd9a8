"""The process of one contender: reads tasks from stdin, a line each, and answers on stdout.

It does not know what is compared. What a task prints goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from typing import Any

from ._measure import Skipped

__all__: list[str] = []


def perform(address: str, arguments: dict[str, Any]) -> tuple[str, Any]:
    module, _, function = address.partition(":")
    try:
        return "value", getattr(importlib.import_module(module), function)(**arguments)
    except Skipped as reason:
        return "skipped", str(reason)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] in ("overwinter", "benchmarks"):
            return "failed", traceback.format_exc()
        return "skipped", f"{error.name} is not installed"
    except Exception:  # noqa: BLE001  # whoever asked shows it
        return "failed", traceback.format_exc()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        address, arguments = json.loads(line)
        answers.write(json.dumps(perform(address, arguments)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
