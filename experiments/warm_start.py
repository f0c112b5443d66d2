"""Regenerates a warm start: `python -m experiments.warm_start [quickstart|moe|code|long]`.

The quickstart's, which the testbed's dense policy starts from too, or that of the testbed's mixture
of experts, of its programs, or of its long responses.

Supervised fine-tuning of random weights, or for the last of the quickstart's, on demonstrations
that are not perfect: each letter of an answer (of a program, each digit and operator) is wrong with
a small probability. Imitation can be no better than its teacher, so the policy starts well below
100 %; a verifier can take it past them, which is what the quickstart shows.

It is the learner's own update: REINFORCE with one sample per prompt, the demonstration, at
advantage 1 is cross entropy.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import string
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from ml_collections import ConfigDict

from configs import quickstart, testbed_code, testbed_long, testbed_moe
from vespo_jax import advantages, models, objectives, parts, problem_sets
from vespo_jax import config as config_lib
from vespo_jax.learner.gradient import LossSettings
from vespo_jax.learner.intake import Problems
from vespo_jax.learner.optimizer import OptimizerSettings, make_optimizer
from vespo_jax.learner.update import StepSettings, init_state, make_update
from vespo_jax.runtime import start_sampler
from vespo_jax.sampler import pad_prompts
from vespo_jax.tasks import PromptStream
from vespo_jax.types import TrainBatch

LEARNING_RATE = 1e-3
WARMUP_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Start:
  """A warm start.

  Attributes:
    config: of its policy and its task.
    folder: where it goes.
    characters: what may be wrong in a demonstration.
    wrong: the probability that one of them is a random one.
    begins: the policy it goes on from; empty: random weights.
    stages: (steps, prompts of a step, tokens), one after another; a stage is of the problems whose
      answer and stop token are so short. Empty: one stage, of all problems.
  """

  config: ConfigDict
  folder: Path
  characters: str = string.ascii_lowercase
  wrong: float = 0.07
  begins: str = ""
  stages: tuple[tuple[int, int, int], ...] = ()


STARTS = {
  "quickstart": Start(quickstart.get_config(), quickstart.WARM_START),
  "moe": Start(testbed_moe.get_config(), testbed_moe.START),
  "code": Start(testbed_code.get_config(), testbed_code.START, string.digits + "+-*%"),
  "long": Start(
    testbed_long.get_config(),
    testbed_long.START,
    wrong=0.02,
    begins=str(quickstart.WARM_START),
    stages=((100, 64, 18), (200, 64, 34), (400, 64, 66)),
  ),
}


def demonstration(answer: str, start: Start, rng: np.random.Generator) -> str:
  """The answer, with each of the start's characters a random one of them at times."""
  characters = list(start.characters)
  wrong = (rng.random(len(answer)) < start.wrong) & np.isin(list(answer), characters)
  drawn = rng.choice(characters, len(answer))
  return "".join(np.where(wrong, drawn, list(answer)))


def supervised_batch(
  problems: Problems,
  indices: np.ndarray,
  response_width: int,
  start: Start,
  rng: np.random.Generator,
) -> TrainBatch:
  """Problems with a demonstration as the one, certain sample of each."""
  prompt_tokens_PS, prompt_mask_PS = pad_prompts(problems.prompts(indices))
  tokens_P1T = np.zeros((len(indices), 1, response_width), np.int32)
  mask_P1T = np.zeros(tokens_P1T.shape, bool)
  for row, index in enumerate(indices):
    answer = problems.examples[int(index)].answer
    ids = problems.tokenizer.encode_response(demonstration(answer, start, rng))
    tokens_P1T[row, 0, : len(ids)], mask_P1T[row, 0, : len(ids)] = ids, True
  return TrainBatch(
    prompt_tokens_PS=prompt_tokens_PS,
    prompt_mask_PS=prompt_mask_PS,
    response_tokens_PRT=tokens_P1T,
    response_mask_PRT=mask_P1T,
    behaviour_logprobs_PRT=np.zeros(tokens_P1T.shape, np.float32),
    rewards_PR=np.ones((len(indices), 1), np.float32),
  )


def train(start: Start, directory: Path, stack: contextlib.ExitStack) -> None:
  """Trains, evaluates as the quickstart does, and writes bfloat16 weights to `directory`."""
  config = start.config
  config.policy.path = start.begins
  config = config_lib.validate(config)
  spec, params, tokenizer = parts.load_policy(config)
  problems, test_problems = problem_sets.open_problems(config, tokenizer, stack)
  tokens = np.array([len(tokenizer.encode_response(e.answer)) for e in problems.examples])
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
  rng = np.random.default_rng(config.seed)
  whole = ((500, 128, config.sampler.max_new_tokens),)
  for steps, prompts, width in start.stages or whole:
    fitting = np.flatnonzero(tokens <= width)
    stream = PromptStream(len(fitting), config.seed)
    with tqdm.trange(steps, desc=f"up to {width} tokens", unit="step") as bar:
      for step in bar:
        indices = fitting[stream.indices(step * prompts, prompts)]
        batch = supervised_batch(problems, indices, width, start, rng)
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
  start = STARTS[parser.parse_args().name]
  with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
    train(start, Path(scratch), stack)
    start.folder.mkdir(parents=True, exist_ok=True)
    for file in Path(scratch).iterdir():
      (start.folder / file.name).write_bytes(file.read_bytes())
  return 0


if __name__ == "__main__":
  sys.exit(main())
