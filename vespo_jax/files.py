"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


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


def read_object(path: Path) -> dict[str, Any]:
  """The JSON object in a file, an empty one where there is no file. Raises OSError naming one that
  holds none."""
  if not path.is_file():
    return {}
  try:
    found = json.loads(path.read_text())
  except ValueError as error:
    raise OSError(f"{path} is damaged, no JSON: {error}") from error
  if not isinstance(found, dict):
    raise OSError(f"{path} is damaged: it holds no JSON object")
  return found
