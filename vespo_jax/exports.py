"""What a run's directory says of the model in it."""

from __future__ import annotations

from pathlib import Path

from vespo_jax import files


def finished_updates(workdir: Path) -> int | None:
  """The updates behind a run's finished model; None if it has none, or a newer checkpoint, as a run
  has that was extended and is not at its new end. Raises OSError if its result is damaged."""
  result = files.read_object(workdir / "result.json")
  updates = result.get("updates")
  if result.get("stop_reason") != "finished" or updates is None:
    return None
  newer = any(step > updates for step in checkpoint_steps(workdir))
  return None if newer or not (workdir / "model").is_dir() else updates


def checkpoint_steps(workdir: Path) -> list[int]:
  """The updates after which a run has checkpoints, ascending."""
  names = [path.name for path in (workdir / "checkpoints").glob("*")]
  return sorted(int(name) for name in names if name.isdecimal())
