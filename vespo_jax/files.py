"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, data: str | bytes) -> None:
  """Writes a file over an earlier one; whoever is killed when, one of the two is there whole."""
  half = path.with_name(path.name + ".tmp")
  half.unlink(missing_ok=True)  # if somebody made it a link, what it leads to is not written
  half.write_bytes(data.encode() if isinstance(data, str) else data)
  os.replace(half, path)
