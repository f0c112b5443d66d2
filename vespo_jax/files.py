"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def write(path: Path, data: str | bytes | Iterable[bytes]) -> None:
  """Writes a file over an earlier one; whoever is killed when, one of the two is there whole.

  Pieces are written as they come, and may be read from the earlier one.
  """
  if isinstance(data, str):
    data = data.encode()
  half = path.with_name(path.name + ".tmp")
  half.unlink(missing_ok=True)  # if somebody made it a link, what it leads to is not written
  with half.open("wb") as file:
    file.writelines([data] if isinstance(data, bytes) else data)
  os.replace(half, path)
