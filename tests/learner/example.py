"""A small model, random minibatches and updates on them, for the tests of this room."""

import dataclasses
import functools

import jax
import numpy as np

from vespo_jax import models, objectives, sharding
from vespo_jax.advantages import Advantage
from vespo_jax.learner.gradient import LossSettings, make_gradient
from vespo_jax.learner.optimizer import OptimizerSettings, make_optimizer
from vespo_jax.learner.update import (
  StepSettings,
  compile_update,
  init_state,
  make_update,
  place_state,
)
from vespo_jax.types import TrainBatch

SPEC = models.ModelSpec(
  vocab_size=32, width=32, layers=1, heads=8, kv_heads=8, head_width=4, mlp_width=64
)
EXPERTS = dataclasses.replace(SPEC, experts=8, active_experts=2)
# A large epsilon keeps Adam's step smooth in the gradient, so that rounding of a near-zero gradient
# is not blown up to a whole step and the comparisons below can be tight.
OPTIMIZER = OptimizerSettings(learning_rate=1e-3, warmup_updates=2, weight_decay=0.1, epsilon=1e-2)
REWARD = Advantage("reward", lambda rewards_PR, valid_PR, extras: rewards_PR, group_relative=False)


def example_batch(prompts=16, samples=4, prompt_width=16, width=5, seed=0, **more):
  rng = np.random.default_rng(seed)
  shape = (prompts, samples, width)
  lengths = rng.integers(0, width + 1, shape[:2])  # some rows are no sequence at all
  return TrainBatch(
    prompt_tokens_PS=rng.integers(0, 32, (prompts, prompt_width)).astype(np.int32),
    prompt_mask_PS=np.arange(prompt_width)[::-1] < rng.integers(1, 17, (prompts, 1)),
    response_tokens_PRT=rng.integers(0, 32, shape).astype(np.int32),
    response_mask_PRT=np.arange(width) < lengths[..., None],
    behaviour_logprobs_PRT=rng.normal(-3.4, 0.2, shape).astype(np.float32),
    rewards_PR=rng.normal(size=shape[:2]).astype(np.float32),
    **more,
  )


def masked_rewards(batch):
  return np.where(batch.response_mask_PRT.any(axis=-1), batch.rewards_PR, 0.0)


def fresh_state(spec=SPEC):
  return init_state(models.init(spec, jax.random.key(0)), make_optimizer(OPTIMIZER))


def plain_update(objective, advantage=REWARD, step=None, recorded=0, spec=SPEC, **loss):
  if isinstance(objective, str):
    objective = objectives.make(objective)
  return make_update(
    spec,
    objective,
    advantage,
    make_optimizer(OPTIMIZER),
    LossSettings(**loss),
    step or StepSettings(),
    recorded=recorded,
  )


@functools.cache  # one compilation for the tests that compare with the same gradient
def plain_gradient(objective, advantage=REWARD, **loss):
  """`(params, batch) -> gradients`, compiled."""
  objective = objectives.make(objective) if isinstance(objective, str) else objective
  gradient = make_gradient(SPEC, objective, advantage, LossSettings(**loss))
  return jax.jit(lambda params, batch: gradient(params, batch)[0])


def advantages_of(objective, advantage, batch, params, **loss):
  """What the rewards of a batch become; nothing else of the gradient is compiled."""
  gradient = make_gradient(SPEC, objectives.make(objective), advantage, LossSettings(**loss))
  return jax.jit(lambda params, batch: gradient(params, batch)[1].advantages_PR)(params, batch)


def scale(tree, factor):
  return jax.tree.map(lambda x: factor * x, tree)


def add(tree, other, factor=1.0):
  return jax.tree.map(lambda x, y: x + factor * y, tree, other)


@functools.cache
def compiled_update(objective, mesh, spec=SPEC, **settings):
  update = plain_update(objective, spec=spec, **settings)
  return compile_update(update, mesh, spec, fresh_state(spec))


def run(objective="vespo", updates=2, mesh=None, batches=None, spec=SPEC, **settings):
  """The state and the metrics after updates on one random minibatch each."""
  mesh = mesh or sharding.make_mesh({"data": -1})
  state = place_state(mesh, spec, fresh_state(spec))
  update = compiled_update(objective, mesh, spec, **settings)
  rows = []
  for batch in batches or [example_batch(seed=seed) for seed in range(updates)]:
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    state, metrics = update(state, batch)
    rows.append(jax.device_get(metrics))
  return jax.device_get(state), rows
