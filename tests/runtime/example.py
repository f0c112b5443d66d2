"""A tiny policy, orders for it, and results made up by hand."""

import jax
import numpy as np

from vespo_jax import models
from vespo_jax.sampler import Order, Result, Settings
from vespo_jax.types import Rollout

SPEC = models.ModelSpec(
  vocab_size=11, width=16, layers=1, heads=2, kv_heads=1, head_width=8, mlp_width=24
)


def params(seed=0):
  return models.init(SPEC, jax.random.key(seed))


def order(order_id=0, version=0, **kwargs):
  fields = dict(
    order_id=order_id,
    weight_version=version,
    seed=7,
    stream=0,
    prompts=[[1, 5, 6], [2]],
    group_ids=[2 * order_id, 2 * order_id + 1],
    settings=Settings(max_new_tokens=4, samples_per_prompt=3, stop_ids=(2,)),
  )
  return Order(**{**fields, **kwargs})


def answer(order, version=None, length=3):
  """A result that answers `order`, without a model: each token repeats the order's number."""
  samples = order.settings.samples_per_prompt
  version = order.weight_version if version is None else version
  rollouts = [
    Rollout(
      prompt_ids=np.array(order.prompts[row // samples], np.int32),
      response_ids=np.full(length, order.order_id % SPEC.vocab_size, np.int32),
      behaviour_logprobs=np.full(length, -0.5, np.float32),
      plain_logprobs=np.full(length, -0.7, np.float32),
      weight_versions=np.full(length, version, np.int32),
      finish="stop",
      group_id=order.group_ids[row // samples],
      sample_seed=order.group_ids[row // samples] * samples + row % samples,
    )
    for row in range(len(order.prompts) * samples)
  ]
  return Result(order.order_id, rollouts, sample_s=0.5)


def same_rollouts(left, right):
  assert len(left) == len(right)
  for one, other in zip(left, right, strict=True):
    for field, value in vars(one).items():
      np.testing.assert_array_equal(value, getattr(other, field), err_msg=field)
