"""GRPO against the published clipped surrogate, differentiated automatically."""

import jax.numpy as jnp
import numpy as np
import pytest
from published import (
  assert_all_hit,
  assert_finite_at_extremes,
  assert_same_gradient,
  make_batch,
  parts,
  ppo,
  prove,
  seq_mean_token_mean,
)

from vespo_jax import objectives
from vespo_jax.objectives import make


@pytest.mark.parametrize("low,high,dual_clip", [(0.2, 0.28, 0.0), (0.1, 0.1, 0.0), (0.2, 0.2, 2.0)])
def test_grpo(low, high, dual_clip):
  """arXiv 2402.03300 eq. 3, without its KL term."""

  def published(logprobs, b):
    r = jnp.exp(logprobs - b.behaviour)
    return seq_mean_token_mean(ppo(r, b.a, 1 - low, 1 + high, dual_clip), b.mask)

  batch = make_batch(0)
  log_r, a, mask = parts(batch)
  r = np.exp(log_r)
  assert_all_hit(mask, low=(a < 0) & (r < 1 - low), high=(a > 0) & (r > 1 + high))
  assert_all_hit(mask, bad_high=(a < 0) & (r > 1 + high), good_low=(a > 0) & (r < 1 - low))
  assert_all_hit(mask, dual=(a < 0) & (r > 2), between=(r > 1 - low) & (r < 1 + high))
  prove(make("grpo", clip_low=low, clip_high=high, dual_clip=dual_clip), published, batch)
  if (low, high) == (0.2, 0.28):
    prove(make("grpo"), published, batch)


@pytest.mark.parametrize("mode", objectives.AGGREGATIONS)
def test_every_aggregation(mode):
  """verl `agg_loss`, as the weight of each token; a row without tokens is not there."""
  batch = make_batch(11)
  mask, weights = batch["mask"], np.zeros(batch["mask"].shape)
  rows = sum(row.any() for row in mask)
  for i, t in np.argwhere(mask):
    weights[i, t] = {
      "token-mean": 1 / mask.sum(),
      "token-sum": 1,
      "seq-mean-token-sum": 1 / rows,
      "seq-mean-token-sum-norm": 1 / rows / 7,
      "seq-mean-token-mean": 1 / rows / mask[i].sum(),
    }[mode]

  def published(logprobs, b):
    return jnp.sum(weights * ppo(jnp.exp(logprobs - b.behaviour), b.a, 0.8, 1.28))

  prove(make("grpo"), published, batch, aggregation=mode)
  values = np.random.default_rng(0).normal(size=mask.shape).astype(np.float32)
  total, count = objectives.aggregate(jnp.asarray(values), jnp.asarray(mask), mode)
  np.testing.assert_allclose(total / count, (weights * values).sum(), rtol=1e-5)


def test_the_clip_fraction_is_of_both_clips_and_the_dual_one():
  batch = make_batch(2)
  log_r, a, mask = parts(batch)
  r = np.exp(log_r)
  clipped = ((a > 0) & (r > 1.28)) | ((a < 0) & (r < 0.8)) | ((a < 0) & (r > 1.5))
  given = [jnp.asarray(x, jnp.float32) for x in (log_r, batch["advantages"])]
  coefficients, metrics = make("grpo", dual_clip=1.5)(*given, jnp.asarray(mask))
  np.testing.assert_allclose(metrics["objective/clip_fraction"], clipped[mask].mean(), rtol=1e-6)
  np.testing.assert_array_equal(np.asarray(coefficients) == 0, clipped | ~mask)


def test_the_three_differ_in_bounds_and_aggregation_alone():
  batch, options = make_batch(3, spread=1.5), {"clip_low": 0.3, "clip_high": 0.4, "dual_clip": 4.0}
  for name in ("dr_grpo", "dapo"):
    assert_same_gradient(make(name, **options), make("grpo", **options), batch)


def test_finite_at_extremes():
  assert_finite_at_extremes(make("grpo"))
  assert_finite_at_extremes(make("grpo", dual_clip=3.0))
