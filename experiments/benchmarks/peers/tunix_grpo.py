"""Tunix's GRPO learner on the reference workload, on CPU.

`GRPOLearner.train` runs its own loop with beta=0, one optimizer step a batch of prompts. Timed are
two parts of each of its steps. `sample_s`: `RLCluster.generate`, the vanilla rollout (Tunix's
`Sampler`, all sequences in one call, tokenizing and decoding included, tokens on the host when it
returns). `update_s`: the calls of `RLCluster.update_actor` of that step, the trainer's jitted train
step (GRPO loss, gradients, AdamW, its metrics; `--batch` sequences at a time with its gradient
accumulation, so one optimizer step in all), until the parameters are ready. `rl_step_s` is
their sum: between them lie only rewards, advantages and the batch's assembly, which are not
counted. The first step compiles and is dropped.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import resource
import time

import jax
import numpy as np
import optax
from flax import nnx
from tunix.models.qwen3 import model as qwen3
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

VOCABULARY = 512


def main() -> None:
  """Prints one JSON object."""
  parser = argparse.ArgumentParser(description=__doc__)
  for name, value in (("prompts", 32), ("samples", 8), ("prompt-tokens", 32), ("new-tokens", 64)):
    parser.add_argument(f"--{name}", type=int, default=value)
  parser.add_argument("--repetitions", type=int, default=3)
  # sequences of a forward and backward pass, 0 for all: 16, 32 and 64 were alike, all in one slower
  parser.add_argument("--batch", type=int, default=32)
  options = parser.parse_args()
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # XLA's threads follow it
  jax.config.update("jax_platforms", "cpu")
  cluster = _cluster(options)
  rewards = np.random.default_rng(1)
  learner = grpo_learner.GRPOLearner(
    rl_cluster=cluster,
    algo_config=grpo_learner.GRPOConfig(num_generations=options.samples, beta=0.0),
    reward_fns=lambda prompts, completions, **_: rewards.random(len(completions)).tolist(),
  )
  clock = _Clock(cluster, options.new_tokens)
  learner.train(_problems(options))
  sample, update = clock.sample[1:], clock.update[1:]
  result = {
    "sample_s": sample,
    "update_s": update,
    "rl_step_s": [a + b for a, b in zip(sample, update, strict=True)],
    "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    "versions": {
      "tunix": importlib.metadata.version("google-tunix"),
      "jax": importlib.metadata.version("jax"),
    },
  }
  print(json.dumps(result), flush=True)


class _Clock:
  """Seconds of every step's `generate` and `update_actor`, which it wraps."""

  def __init__(self, cluster: rl_cluster.RLCluster, new_tokens: int):
    self.sample: list[float] = []
    self.update: list[float] = []
    generate, update_actor = cluster.generate, cluster.update_actor

    def timed_generate(*args, **kwargs):
      started = time.perf_counter()
      output = generate(*args, **kwargs)
      self.sample.append(time.perf_counter() - started)
      self.update.append(0.0)
      assert {len(tokens) for tokens in output.tokens} == {new_tokens}
      return output

    def timed_update(*args, **kwargs):
      started = time.perf_counter()
      update_actor(*args, **kwargs)
      jax.block_until_ready(nnx.state(cluster.actor_trainer.model))
      self.update[-1] += time.perf_counter() - started

    cluster.generate, cluster.update_actor = timed_generate, timed_update


class _Tokenizer:
  """Token ids as text; padding and end lie outside the vocabulary, so nothing stops early."""

  def encode(self, text: str) -> list[int]:
    return [int(word) for word in text.split()]

  def decode(self, ids: list[int]) -> str:
    return " ".join(map(str, ids))

  def bos_id(self) -> int:
    return 0  # Tunix prepends none

  def pad_id(self) -> int:
    return VOCABULARY

  def eos_id(self) -> int:
    return VOCABULARY + 1


def _cluster(options: argparse.Namespace) -> rl_cluster.RLCluster:
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
  micro = min(options.batch // options.samples, options.prompts) or None  # prompts
  return rl_cluster.RLCluster(
    actor=_model(),
    tokenizer=_Tokenizer(),
    cluster_config=rl_cluster.ClusterConfig(
      role_to_mesh={role: mesh for role in rl_cluster.Role},
      rollout_engine="vanilla",
      training_config=rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.adamw(1e-4),
        eval_every_n_steps=options.repetitions + 2,
        max_steps=options.repetitions + 1,
        mini_batch_size=options.prompts,
        train_micro_batch_size=micro,
        rollout_micro_batch_size=options.prompts,
        compute_logps_micro_batch_size=options.prompts,
      ),
      rollout_config=base_rollout.RolloutConfig(
        max_prompt_length=options.prompt_tokens,
        max_tokens_to_generate=options.new_tokens,
        kv_cache_size=options.prompt_tokens + options.new_tokens,
        temperature=1.0,
      ),
    ),
  )


def _model() -> qwen3.Qwen3:
  config = qwen3.ModelConfig(
    num_layers=4,
    vocab_size=VOCABULARY,
    embed_dim=256,
    hidden_dim=1024,
    num_heads=8,
    head_dim=32,
    num_kv_heads=4,
    rope_theta=1_000_000,
    norm_eps=1e-6,
    use_tied_embedding=True,
  )  # float32 by default
  return qwen3.Qwen3(config, rngs=nnx.Rngs(0))


def _problems(options: argparse.Namespace) -> list[dict[str, np.ndarray]]:
  shape = (options.repetitions + 1, options.prompts, options.prompt_tokens)
  ids = np.random.default_rng(0).integers(2, VOCABULARY, shape)
  return [{"prompts": np.array([" ".join(map(str, prompt)) for prompt in batch])} for batch in ids]


if __name__ == "__main__":
  main()
