"""Checksums: of the files of a directory, and of parameters."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import jax
import numpy as np

from vespo_jax import sharding
from vespo_jax.types import Params

NAME = "sha256.json"


def write(directory: Path, leave_out: str) -> None:
  """Writes the size and SHA-256 of every file under `directory` into it, but of those of a name."""
  files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != leave_out)
  entries = {str(path.relative_to(directory)): list(_fingerprint(path)) for path in files}
  (directory / NAME).write_text(json.dumps(entries, indent=1) + "\n")


def damage(directory: Path) -> str | None:
  """What differs from the manifest in `directory`, naming the file; None if nothing does."""
  try:
    written = json.loads((directory / NAME).read_text())
    entries = [(name, int(size), str(digest)) for name, (size, digest) in written.items()]
  except (OSError, ValueError, TypeError, AttributeError) as error:
    return f"its manifest {NAME} cannot be read: {error}"
  for name, size, digest in entries:
    path = directory / name
    if not path.is_file():
      return f"{name} is missing"
    found, actual = _fingerprint(path)
    if found != size:
      return f"{name} has {found} bytes, not {size}"
    if actual != digest:
      return f"{name} has other bytes than were written"
  return None


def digest_of(params: Params) -> str:
  """SHA-256 of all leaves, in the order of the tree."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(params):
    digest.update(np.ascontiguousarray(sharding.fetch(leaf)).data)
  return digest.hexdigest()


def _fingerprint(path: Path) -> tuple[int, str]:
  with path.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  return path.stat().st_size, digest
