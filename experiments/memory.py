"""The memory of an update, against the least it could be, under each `policy.remat`.

    python -m experiments.memory --model=PATH [--lora_rank=16] [--prompts=4 --samples=16 ...]

One row per policy. `state` is parameters and optimizer, `gradients` one copy of what is trained,
`activations` what the backward pass keeps of a micro-batch (the leaves of the function's own vjp,
parameters left out); `minimum` is their sum. `compiled` is what XLA reserves for arguments and
temporaries, so also the accumulator of the gradients and the working space of each operation.
`measured` is the state and the rise of the process's resident memory during an update (Linux); each
policy runs in a process of its own. All in MiB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vespo_jax import advantages, models, objectives
from vespo_jax.learner.gradient import LossSettings
from vespo_jax.learner.optimizer import OptimizerSettings, make_optimizer
from vespo_jax.learner.update import StepSettings, init_state, make_update
from vespo_jax.models import ModelSpec, lora
from vespo_jax.models.lora import LoraSettings
from vespo_jax.types import Params, TrainBatch, TrainState

COLUMNS = ("state", "gradients", "activations", "minimum", "compiled", "measured")
MIB = 2**20


def size(tree: Any) -> int:
  """Bytes of all leaves, concrete or abstract."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def random_batch(spec: ModelSpec, prompts: int, samples: int, prompt: int, response: int):
  """A minibatch without padding."""
  rng = np.random.default_rng(0)
  shape = (prompts, samples, response)
  return TrainBatch(
    prompt_tokens_PS=rng.integers(0, spec.vocab_size, (prompts, prompt)).astype(np.int32),
    prompt_mask_PS=np.ones((prompts, prompt), bool),
    response_tokens_PRT=rng.integers(0, spec.vocab_size, shape).astype(np.int32),
    response_mask_PRT=np.ones(shape, bool),
    behaviour_logprobs_PRT=rng.normal(-3, 1, shape).astype(np.float32),
    rewards_PR=rng.integers(0, 2, shape[:2]).astype(np.float32),
  )


def kept_activations(spec: ModelSpec, state: TrainState, piece: TrainBatch, adapters, remat: str):
  """Bytes that the backward pass of one micro-batch keeps, the model's parameters left out."""

  def logprobs(params: Params, frozen: Params | None):
    policy = params if adapters is None else lora.attach(frozen, params, adapters)
    return models.group_logprobs(policy, spec, piece, compute=models.Compute(remat=remat))

  backward = lambda params, frozen: jax.vjp(lambda p: logprobs(p, frozen), params)[1]
  jaxpr = jax.make_jaxpr(backward)(state.params, state.frozen).jaxpr
  return size([var.aval for var in jaxpr.outvars if var not in jaxpr.invars])


def resident(field: str) -> int:
  """Bytes of this process: `VmRSS` now, or `VmHWM` at most."""
  lines = Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def measure(options: argparse.Namespace, remat: str) -> dict[str, float]:
  """One row of the table, in bytes, and the seconds of the update."""
  spec, params, _ = models.load(options.model)
  optimizer = make_optimizer(OptimizerSettings(learning_rate=1e-4))
  adapters = LoraSettings(options.lora_rank, 32.0) if options.lora_rank else None
  if adapters is None:
    state = init_state(params, optimizer)
  else:
    state = init_state(lora.init(spec, jax.random.key(0), adapters), optimizer, frozen=params)
  del params
  sizes = (options.samples, options.prompt_width, options.response_width)
  batch = random_batch(spec, options.prompts, *sizes)
  piece = random_batch(spec, options.prompts // options.micro_batches, *sizes)
  row = {"state": size(state), "gradients": size(state.params)}
  row["activations"] = kept_activations(spec, state, piece, adapters, remat)
  row["minimum"] = sum(row.values())

  update = make_update(
    spec,
    objectives.make("vespo"),
    advantages.make("grpo"),
    optimizer,
    LossSettings(micro_batches=options.micro_batches, compute=models.Compute(remat=remat)),
    StepSettings(),
    adapters,
  )
  compiled = jax.jit(update, donate_argnums=0).lower(state, batch).compile()
  analysis = compiled.memory_analysis()
  row["compiled"] = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
  before = resident("VmRSS")
  Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
  started = time.perf_counter()
  jax.block_until_ready(compiled(state, batch))
  row["measured"] = row["state"] + resident("VmHWM") - before
  return row | {"seconds": time.perf_counter() - started}


def main(argv: list[str]) -> int:
  """Prints the table; `--only` prints one row as JSON."""
  parser = argparse.ArgumentParser(prog="python -m experiments.memory", description=__doc__)
  parser.add_argument("--model", required=True, help="Hugging Face or run directory, or GGUF file")
  parser.add_argument("--lora_rank", type=int, default=0, help="0: the whole model is trained")
  for name, value in (("prompts", 4), ("samples", 16), ("micro_batches", 1)):
    parser.add_argument(f"--{name}", type=int, default=value)
  for name, value in (("prompt_width", 64), ("response_width", 12)):
    parser.add_argument(f"--{name}", type=int, default=value, help="tokens")
  parser.add_argument("--only", choices=models.REMAT, help=argparse.SUPPRESS)
  options = parser.parse_args(argv[1:])
  if options.only:
    print(json.dumps(measure(options, options.only)))
    return 0
  print(f"{'remat':>8}" + "".join(f"{name:>13}" for name in COLUMNS) + f"{'seconds':>10}")
  for remat in models.REMAT:
    command = [sys.executable, "-m", "experiments.memory", *argv[1:], f"--only={remat}"]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode:
      print(f"error: --remat={remat} could not be measured, as it says above", file=sys.stderr)
      return 1
    row = json.loads(run.stdout)
    cells = "".join(f"{row[name] / MIB:13.0f}" for name in COLUMNS)
    print(f"{remat:>8}{cells}{row['seconds']:10.1f}", flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
