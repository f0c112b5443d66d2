"""A small policy far from uniform, and what its log-probs are without any sampler."""

import jax
import numpy as np

from vespo_jax import models, sampler

SPEC = models.ModelSpec(
  vocab_size=11, width=16, layers=2, heads=2, kv_heads=1, head_width=8, mlp_width=24
)
PROMPTS = [[1, 2, 3], [4], [2, 2, 1, 3, 4, 1], [9, 8, 7, 6, 5], [10, 1], [3, 3, 3]]
KEY = jax.random.key(5)
LONGEST = 32  # no sequence of these tests is longer

_token_logprobs = jax.jit(models.token_logprobs, static_argnums=1)


def weights(seed, spec=SPEC):
  """Parameters whose distributions are far from uniform, and from those of other seeds; norms stay
  at one, which keeps rounding errors small."""
  params = models.init(spec, jax.random.key(seed))
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x if path[-1].key.endswith("norm") else x * 20, params
  )


def settings(**kwargs):
  """Settings with a stop token."""
  return sampler.Settings(
    **{"max_new_tokens": 12, "samples_per_prompt": 4, "stop_ids": (0,), **kwargs}
  )


def learner_logprobs(params, rollout, spec=SPEC, temperature=1.0):
  """The learner's log-prob of every response token under `params`."""
  row = np.concatenate([rollout.prompt_ids, rollout.response_ids])
  row, start = np.pad(row, (0, LONGEST - len(row))), len(rollout.prompt_ids)
  logprobs, _ = _token_logprobs(params, spec, row[None], temperature)
  return np.asarray(logprobs)[0, start : start + len(rollout.response_ids)]


def assert_same(one, other):
  """Two rollouts are the same, bit for bit."""
  assert (one.sample_seed, one.group_id, one.finish) == (
    other.sample_seed,
    other.group_id,
    other.finish,
  )
  for field in ("prompt_ids", "response_ids", "weight_versions", "behaviour_logprobs"):
    np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)
  np.testing.assert_array_equal(one.plain_logprobs, other.plain_logprobs)
