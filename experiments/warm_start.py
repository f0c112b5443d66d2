"""Regenerates a warm start: `python -m experiments.warm_start [quickstart|moe|code]`.

The quickstart's, which the testbed's dense policy starts from too, or that of the testbed's mixture
of experts, or of its programs.

Supervised fine-tuning of random weights on demonstrations that are not perfect: each letter of an
answer (of a program, each digit and operator) is wrong with a small probability. Imitation can be
no better than its teacher, so the policy starts well below 100 %; a verifier can take it past them,
which is what the quickstart shows.

It is the learner's own update: REINFORCE with one sample per prompt, the demonstration, at
advantage 1 is cross entropy.
"""

from __future__ import annotations

import argparse
import contextlib
import string
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from ml_collections import FrozenConfigDict

from configs import quickstart, testbed_code, testbed_moe
from vespo_jax import advantages, models, objectives, parts
from vespo_jax import config as config_lib
from vespo_jax.learner.gradient import LossSettings
from vespo_jax.learner.intake import Problems
from vespo_jax.learner.optimizer import OptimizerSettings, make_optimizer
from vespo_jax.learner.update import StepSettings, init_state, make_update
from vespo_jax.runtime import start_sampler
from vespo_jax.sampler import pad_prompts
from vespo_jax.tasks import PromptStream
from vespo_jax.types import TrainBatch

STARTS = {  # config, where its start goes, and what may be wrong in a demonstration
  "quickstart": (quickstart.get_config(), quickstart.WARM_START, string.ascii_lowercase),
  "moe": (testbed_moe.get_config(), testbed_moe.START, string.ascii_lowercase),
  "code": (testbed_code.get_config(), testbed_code.START, string.digits + "+-*%"),
}
STEPS = 500
PROMPTS = 128  # of a step
WRONG = 0.07  # probability that a character of a demonstration is a random one
LEARNING_RATE = 1e-3
WARMUP_STEPS = 50


def demonstration(answer: str, characters: str, rng: np.random.Generator) -> str:
  """The answer, with each of `characters` in it a random one of them with probability `WRONG`."""
  wrong = (rng.random(len(answer)) < WRONG) & np.isin(list(answer), list(characters))
  drawn = rng.choice(list(characters), len(answer))
  return "".join(np.where(wrong, drawn, list(answer)))


def supervised_batch(
  problems: Problems,
  indices: np.ndarray,
  response_width: int,
  characters: str,
  rng: np.random.Generator,
) -> TrainBatch:
  """Problems with a demonstration as the one, certain sample of each."""
  prompt_tokens_PS, prompt_mask_PS = pad_prompts(problems.prompts(indices))
  tokens_P1T = np.zeros((len(indices), 1, response_width), np.int32)
  mask_P1T = np.zeros(tokens_P1T.shape, bool)
  for row, index in enumerate(indices):
    answer = problems.examples[int(index)].answer
    ids = problems.tokenizer.encode_response(demonstration(answer, characters, rng))
    tokens_P1T[row, 0, : len(ids)], mask_P1T[row, 0, : len(ids)] = ids, True
  return TrainBatch(
    prompt_tokens_PS=prompt_tokens_PS,
    prompt_mask_PS=prompt_mask_PS,
    response_tokens_PRT=tokens_P1T,
    response_mask_PRT=mask_P1T,
    behaviour_logprobs_PRT=np.zeros(tokens_P1T.shape, np.float32),
    rewards_PR=np.ones((len(indices), 1), np.float32),
  )


def train(
  config: FrozenConfigDict, characters: str, directory: Path, stack: contextlib.ExitStack
) -> None:
  """Trains, evaluates as the quickstart does, and writes bfloat16 weights to `directory`."""
  spec, params, tokenizer = parts.load_policy(config)
  problems, test_problems = parts.open_problems(config, tokenizer, stack)
  optimizer = make_optimizer(
    OptimizerSettings(learning_rate=LEARNING_RATE, warmup_updates=WARMUP_STEPS)
  )
  update = make_update(
    spec,
    objectives.make("reinforce"),
    advantages.make("dr_grpo"),  # a single sample keeps its reward, which is 1
    optimizer,
    LossSettings(aggregation="token-mean", micro_batches=4),
    StepSettings(),
  )
  update = jax.jit(update, donate_argnums=0)
  state = init_state(params, optimizer)
  stream = PromptStream(len(problems.examples), config.seed)
  rng = np.random.default_rng(config.seed)
  with tqdm.trange(STEPS, desc="warm start", unit="step") as bar:
    for step in bar:
      indices = stream.indices(step * PROMPTS, PROMPTS)
      width = config.sampler.max_new_tokens
      batch = supervised_batch(problems, indices, width, characters, rng)
      state, metrics = update(state, batch)
      bar.set_postfix(loss=f"{float(metrics['objective/loss']):.3f}", refresh=False)
  models.save(directory, spec, state.params, tokenizer, dtype=jnp.bfloat16)
  _, stored, _ = models.load(directory)
  sampler = start_sampler("threads", spec)
  stack.callback(sampler.close)
  sampler.publish(0, stored)
  print(f"held-out accuracy: {parts.make_evaluator(config, test_problems).run(sampler, 0)}")


def main() -> int:
  """Trains one start; its files are replaced only when it is done."""
  parser = argparse.ArgumentParser(prog="python -m experiments.warm_start", description=__doc__)
  parser.add_argument("name", nargs="?", choices=STARTS, default="quickstart")
  config, folder, characters = STARTS[parser.parse_args().name]
  config.policy.path = ""
  with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
    train(config_lib.validate(config), characters, Path(scratch), stack)
    folder.mkdir(parents=True, exist_ok=True)
    for file in Path(scratch).iterdir():
      (folder / file.name).write_bytes(file.read_bytes())
  return 0


if __name__ == "__main__":
  sys.exit(main())
