"""What is written: a record is a header and a body in an envelope that can tell whether it was damaged.

Pure: bytes in, bytes out. It does not know what an agent is or where a record is kept.
``docs/format.md`` has the layout.
"""

from __future__ import annotations

from ._envelope import CUSTOM, EXTRAS, MAX_BYTES, MAX_DEPTH, Header, check_depth, pack, seal, unpack

__all__ = ["CUSTOM", "EXTRAS", "MAX_BYTES", "MAX_DEPTH", "Header", "check_depth", "pack", "seal", "unpack"]
