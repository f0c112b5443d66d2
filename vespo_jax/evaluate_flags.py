"""The command line of `python -m vespo_jax.evaluate`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from vespo_jax.evaluation import presets
from vespo_jax.models import DECODE_ATTENTION
from vespo_jax.models.quantize import DTYPES
from vespo_jax.sampler.placement import TENSOR
from vespo_jax.subjects import Changes, TaskSettings

_OF_A_MODEL = ("task", "task_options", "task_seed", "test_size", "data_dir", "reward")


def parse(arguments: list[str], description: str) -> argparse.Namespace:
  """The flags. Ends the program with exit code 2 and one message if they make no command."""
  parser = argparse.ArgumentParser(
    prog="python -m vespo_jax.evaluate",
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument("--workdir", type=Path, help="run directory")
  what.add_argument("--model", type=Path, help="Hugging Face directory or GGUF file")
  what.add_argument(
    "--compare", type=Path, nargs=2, metavar=("A", "B"), help="evaluated runs, or records"
  )
  add(
    "--checkpoint", type=int, metavar="STEP", help="of the run; else its finished model or newest"
  )
  add("--task", help="of a model: FAMILY/DATASET")
  add("--task_options", type=options, metavar="JSON", help="of a model's task: an object")
  add("--task_seed", type=int, help="of a model's generated problems; default: 0")
  add(
    "--test_size",
    type=int,
    help="of a model's held-out problems; default: 200. A run of the same task and seed that holds "
    "out fewer was trained on the rest of them",
  )
  add("--data_dir", type=Path, help="where a model's problems are kept; default: runs/data")
  add("--reward", help="that scores a model's answers: package.module:function; default: the task")
  add("--problems", type=int, help="held-out problems; default: the run's own, or all")
  add(
    "--samples", type=int, help="of each, under each seed; default: the run's own, the preset's, 1"
  )
  add("--seeds", type=seeds, metavar="I,J,..", help="of the sampling; default: the run's own, or 0")
  add("--preset", choices=list(presets.PRESETS), help="a paper's temperature, top_p and samples")
  add("--temperature", type=float, help="0 is greedy; default: 1")
  add("--top_p", type=float, help="1 is off; default: 1")
  add("--max_new_tokens", type=int, help="of a response; default: the run's own, or 512")
  add("--sequences", type=int, help="sampled at a time; default: the run's own, or 64")
  add("--dtype", choices=list(DTYPES), help="of the sampler; default: the run's own, or float32")
  here = "default: the run's own where this machine has it, or"
  add("--attention", choices=list(DECODE_ATTENTION), help=f"of the sampler; {here} dense")
  add("--tensor", type=int, choices=TENSOR, help=f"devices to spread the model over; {here} 1")
  add("--out", type=Path, help="folder of the records; default: RUN/evaluation, runs/evaluation")
  add("--json", action="store_true", help="print one JSON object")
  flags = parser.parse_args(arguments)
  needless = ["checkpoint"] if flags.workdir is None else []
  needless += [] if flags.model else _OF_A_MODEL
  needless += [field.name for field in dataclasses.fields(Changes)] if flags.compare else []
  for name in needless:
    if getattr(flags, name) is not None:
      why = "needs --model: a run is evaluated on its own task" if name in _OF_A_MODEL else ""
      parser.error(f"--{name} {why or 'says nothing of what is given'}")
  if flags.model and not flags.task:
    parser.error("--model needs a --task")
  return flags


def changes(flags: argparse.Namespace) -> Changes:
  """What is to be in place of the defaults."""
  return Changes(
    **{field.name: getattr(flags, field.name) for field in dataclasses.fields(Changes)}
  )


def task_settings(flags: argparse.Namespace) -> TaskSettings:
  """The problems for a model."""
  given = {name: getattr(flags, name) for name in _OF_A_MODEL}
  return TaskSettings(**{name: value for name, value in given.items() if value is not None})


def options(text: str) -> dict[str, Any]:
  """A JSON object. Raises ValueError."""
  value = json.loads(text)
  if not isinstance(value, dict):
    raise ValueError(text)
  return value


def seeds(text: str) -> list[int]:
  """Integers with commas between them. Raises ValueError."""
  return [int(seed) for seed in text.split(",")]
