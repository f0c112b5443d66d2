"""How papers sample when they evaluate, by name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping


@dataclasses.dataclass(frozen=True)
class Preset:
  """How a paper samples.

  Attributes:
    temperature, top_p: of the sampling.
    samples: k by dataset, as `_short` writes its name; "" stands for any other.
  """

  temperature: float
  top_p: float
  samples: Mapping[str, int]


PRESETS = {
  # arXiv 2602.10693, section 4.1 and its scripts: avg@k; pass@10 on code
  "vespo": Preset(
    1.0,
    0.7,
    {"aime24": 32, "aime25": 32, "amc23": 16, "math500": 4}
    | {"humaneval": 10, "mbpp": 10, "livecodebench": 10},
  ),
  # arXiv 2602.04879: avg@32
  "dppo": Preset(0.7, 0.95, {"aime24": 32, "aime25": 32}),
  # arXiv 2602.17616: the mean of 3, of 5 where there are several turns
  "vcpo": Preset(0.8, 0.7, {"": 3}),
}


def samples_of(preset: str, tasks: Iterable[str]) -> int:
  """The samples of a problem of tasks "FAMILY/DATASET".

  Raises ValueError naming the datasets that the paper has, if one is none of them, or the tasks, if
  it has not the same number for all.
  """
  found = {task: _samples_of_one(preset, task) for task in tasks}
  if len(set(found.values())) > 1:
    counts = ", ".join(f"{samples} of {task}" for task, samples in found.items())
    raise ValueError(
      f"--preset={preset} has no one number of samples for all tasks ({counts}): give --samples"
    )
  return next(iter(found.values()))


def _samples_of_one(preset: str, task: str) -> int:
  known = PRESETS[preset].samples
  found = known.get(_short(task.rpartition("/")[2]), known.get(""))
  if found is None:
    raise ValueError(
      f"--preset={preset} says how many samples a problem of {', '.join(known)} has, not one of "
      f"{task}: give --samples"
    )
  return found


def _short(dataset: str) -> str:
  """A dataset's name as people write it: "AIME_2024", "aime-24", "HumanEval+" and so on."""
  bare = re.sub(r"[^a-z0-9]|plus$", "", dataset.lower())
  return re.sub(r"20(\d\d)$", r"\1", bare)
