"""Converts a model: `python -m vespo_jax.convert --model=PATH --out=PATH --format=hf`.

Of a run that has not finished, or was extended and is not at its new end, the policy is that of its
newest checkpoint, with adapters merged; `--checkpoint=STEP` takes another one.
Exit codes: 0, or 2 for a model that cannot be read or a directory that cannot be written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax.numpy as jnp

from vespo_jax import exports, models, training
from vespo_jax.learner.checkpoint import CheckpointError

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def main(argv: list[str]) -> int:
  """Runs one command line; returns the exit code."""
  parser = argparse.ArgumentParser(prog="python -m vespo_jax.convert", description=__doc__)
  parser.add_argument("--model", required=True, help="Hugging Face or run directory, or GGUF file")
  parser.add_argument("--out", required=True, type=Path, help="a directory, new or empty")
  parser.add_argument("--format", default="hf", choices=["hf"])
  parser.add_argument("--checkpoint", type=int, help="of a run: after so many updates")
  parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
  arguments = parser.parse_args(argv[1:])
  out = arguments.out
  try:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
      raise ValueError(f"--out={out} is not an empty directory")
    model, dtype = Path(arguments.model), DTYPES[arguments.dtype]
    step, there = arguments.checkpoint, exports.checkpoint_steps(model)
    if step is not None and not there:
      raise ValueError(f"--checkpoint={step}: {model} is no run with checkpoints")
    if step is not None or (there and exports.finished_updates(model) is None):
      step, spec, params, tokenizer = training.read_checkpoint(model, step)
    else:
      spec, params, tokenizer = models.load(model)
    models.save(out, spec, params, tokenizer, format=arguments.format, dtype=dtype)
  except (ValueError, OSError, CheckpointError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  after = "" if step is None else f" after update {step}"
  print(f"{models.count(spec):,} parameters in {arguments.dtype}{after} -> {out}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
