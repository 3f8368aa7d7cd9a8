"""The door for the command line; see ``_runner.py``."""

from __future__ import annotations

from ._runner import main

__all__ = ["main"]

raise SystemExit(main())
