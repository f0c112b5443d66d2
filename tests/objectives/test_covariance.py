"""Clip-Cov and KL-Cov against arXiv 2505.22617 and its implementation in verl."""

import jax.numpy as jnp
import numpy as np
import pytest
from published import (
  assert_all_hit,
  assert_finite_at_extremes,
  assert_same_gradient,
  gradient,
  make_batch,
  parts,
  ppo,
  prove,
  sg,
  token_mean,
)

from vespo_jax import objectives
from vespo_jax.objectives import make


def covariance(logprobs, a, mask):
  """numpy: (A - mean A) (log pi - mean log pi) of every token; NaN elsewhere."""
  a, tokens = np.broadcast_to(a, mask.shape), np.argwhere(mask)
  mean_a = np.mean([a[i, t] for i, t in tokens])
  mean_logprob = np.mean([logprobs[i, t] for i, t in tokens])
  cov = np.full(mask.shape, np.nan)
  for i, t in tokens:
    cov[i, t] = (a[i, t] - mean_a) * (logprobs[i, t] - mean_logprob)
  return cov


def eligible(batch, cov_low, cov_high, clip_low=0.2, clip_high=0.2):
  """numpy: the tokens Clip-Cov draws from: cov within its bounds, the clip not active."""
  log_r, a, mask = parts(batch)
  r = np.exp(log_r)
  by_clip = -a * np.clip(r, 1 - clip_low, 1 + clip_high) > -a * r
  cov = np.nan_to_num(covariance(batch["policy_logprobs"], a, mask), nan=np.inf)
  return mask & ~by_clip & (cov > cov_low) & (cov < cov_high), by_clip


def drawn(objective, batch):
  """numpy: where Clip-Cov took the gradient away, and PPO's clip would not have."""
  arrays = {k: jnp.asarray(x, jnp.float32) for k, x in batch.items() if k != "mask"}
  log_r, _, mask = parts(batch)
  given = [jnp.asarray(log_r, jnp.float32), arrays["advantages"], jnp.asarray(mask)]
  with_draw, metrics = objective(*given, arrays)
  without, _ = make("grpo", clip_low=0.2, clip_high=0.2)(*given)
  return np.asarray((with_draw == 0) & (without != 0)), float(
    metrics["objective/selected_fraction"]
  )


@pytest.mark.parametrize("cov_low,cov_high", [(0.2, 0.8), (-0.3, 0.3)])
def test_clip_cov_of_all_that_are_eligible(cov_low, cov_high):
  """With more wanted than there are, the draw is no draw: eq. 12 with corr = 0 on all of them."""
  batch = make_batch(0)
  log_r, a, mask = parts(batch)
  chosen, by_clip = eligible(batch, cov_low, cov_high)
  assert_all_hit(mask, chosen=chosen, clipped=by_clip)
  cov = np.nan_to_num(covariance(batch["policy_logprobs"], a, mask))
  assert_all_hit(mask, too_low=~by_clip & (cov < cov_low), too_high=~by_clip & (cov > cov_high))
  assert_all_hit(mask, clipped_within=by_clip & (cov > cov_low) & (cov < cov_high))

  def published(logprobs, b):
    corr = jnp.where(chosen, 0.0, 1.0)
    return token_mean(corr * ppo(jnp.exp(logprobs - b.behaviour), b.a, 0.8, 1.2), b.mask)

  objective = make("clip_cov", selected=1.0, cov_low=cov_low, cov_high=cov_high)
  prove(objective, published, batch)
  np.testing.assert_allclose(drawn(objective, batch)[1], chosen[mask].mean(), rtol=1e-6)


def test_clip_cov_bounds_the_ratio_on_both_sides():
  batch = make_batch(1)
  log_r, a, mask = parts(batch)
  assert_all_hit(mask, low=(a < 0) & (log_r < np.log(0.7)), high=(a > 0) & (log_r > np.log(1.4)))

  def published(logprobs, b):
    return token_mean(ppo(jnp.exp(logprobs - b.behaviour), b.a, 0.7, 1.4), b.mask)

  prove(make("clip_cov", clip_low=0.3, clip_high=0.4, selected=0.0), published, batch)


@pytest.mark.parametrize("selected", [2e-4, 0.05, 0.1])
def test_clip_cov_draws_a_fraction_of_all_tokens_at_least_one(selected):
  for seed in range(5):
    batch = make_batch(seed)
    chosen, _ = eligible(batch, 0.1, 5.0)
    count = max(int(selected * batch["mask"].sum()), 1)
    where, fraction = drawn(make("clip_cov", selected=selected, cov_low=0.1), batch)
    assert chosen.sum() > count
    assert where.sum() == count and not (where & ~chosen).any()
    np.testing.assert_allclose(fraction, count / batch["mask"].sum(), rtol=1e-6)


def test_clip_cov_draws_single_tokens_and_not_rows():
  batch = make_batch(6)
  chosen, _ = eligible(batch, 0.0, 5.0)
  where, _ = drawn(make("clip_cov", selected=0.15, cov_low=0.0), batch)
  partly = (where & chosen).any(1) & (~where & chosen).any(1)
  assert partly.sum() > 3


def test_clip_cov_draws_uniformly_and_anew_for_every_batch():
  """Among the eligible, neither place in the batch nor size of the covariance counts."""
  places, ranks, n = [], [], 60
  for seed in range(n):
    batch = make_batch(seed)
    log_r, a, mask = parts(batch)
    chosen, _ = eligible(batch, 0.0, 5.0)
    where, _ = drawn(make("clip_cov", selected=2e-4, cov_low=0.0), batch)
    cov = covariance(batch["policy_logprobs"], a, mask)
    places.append(np.flatnonzero(where[chosen])[0] / (chosen.sum() - 1))
    ranks.append((cov[chosen] < cov[where]).sum() / (chosen.sum() - 1))
  for quantiles in (places, ranks):  # 4 standard errors of the mean of n uniform numbers
    assert abs(np.mean(quantiles) - 0.5) < 4 / np.sqrt(12 * n)
    assert np.std(quantiles) > 0.2


@pytest.mark.parametrize("selected", [2e-4, 0.05, 0.3])
@pytest.mark.parametrize("coefficient", [1.0, 0.2])
def test_kl_cov(selected, coefficient):
  """eq. 13: the penalty on the tokens of largest covariance, and no clip."""
  batch = make_batch(2)
  log_r, a, mask = parts(batch)
  cov = covariance(batch["policy_logprobs"], a, mask)
  left = [(cov[i, t], i, t) for i, t in np.argwhere(mask)]
  chosen = np.zeros(mask.shape, bool)
  for _ in range(max(1, int(len(left) * selected))):
    largest = max(left)
    left.remove(largest)
    chosen[largest[1:]] = True
  if selected == 0.3:
    assert_all_hit(mask, up=chosen & (log_r > 0), down=chosen & (log_r < 0), good=chosen & (a > 0))

  def published(logprobs, b):
    log_r = logprobs - b.behaviour
    penalty = jnp.where(chosen, coefficient * jnp.abs(log_r), 0.0)
    return token_mean(-b.a * jnp.exp(log_r) + penalty, b.mask)

  objective = make("kl_cov", selected=selected, coefficient=coefficient)
  prove(objective, published, batch)
  if (selected, coefficient) == (2e-4, 1.0):
    prove(make("kl_cov"), published, batch)
  arrays = {k: jnp.asarray(x, jnp.float32) for k, x in batch.items() if k != "mask"}
  _, metrics = objective(
    jnp.asarray(log_r, jnp.float32), arrays["advantages"], jnp.asarray(mask), arrays
  )
  np.testing.assert_allclose(metrics["objective/selected_fraction"], chosen[mask].mean(), rtol=1e-6)


def test_selecting_none_leaves_the_ratio_with_or_without_the_clip():
  batch = make_batch(3)
  clip, clipped = make("clip_cov", selected=0.0), make("grpo", clip_high=0.2)
  assert_same_gradient(clip, clipped, batch)
  penalty, plain = make("kl_cov", selected=0.0), make("cispo", clip_high=1e9)
  assert_same_gradient(penalty, plain, batch)


def test_the_penalty_is_weighted_by_a_rollout_correction():
  """verl multiplies the whole token loss, its penalty too."""
  batch = make_batch(5, proximal=0.5)  # the terms of seed 4 nearly cancel
  log_r, a, mask = parts(batch, "proximal_logprobs")
  cov = covariance(batch["policy_logprobs"], a, mask)
  chosen = mask & (cov >= np.sort(cov[mask])[-int(mask.sum() * 0.3)])

  def published(logprobs, b):
    log_r = logprobs - b.proximal
    loss = -b.a * jnp.exp(log_r) + jnp.where(chosen, jnp.abs(log_r), 0.0)
    return token_mean(sg(jnp.minimum(jnp.exp(b.proximal - b.behaviour), 2.0)) * loss, b.mask)

  prove(make("kl_cov", selected=0.3), published, batch, correction="token_tis")


def test_the_published_defaults():
  """2e-4 of all tokens and a coefficient of 1; verl's bounds on the covariance."""
  assert objectives.defaults("clip_cov") == {
    "clip_low": 0.2,
    "clip_high": 0.2,
    "selected": 2e-4,
    "cov_low": 1.0,
    "cov_high": 5.0,
  }
  assert objectives.defaults("kl_cov") == {"selected": 2e-4, "coefficient": 1.0}


def test_covariance_of_a_batch_without_tokens_is_harmless():
  batch = make_batch(5)
  batch["mask"] = np.zeros_like(batch["mask"])
  for name in ("clip_cov", "kl_cov"):
    assert not gradient(make(name), batch).any()


@pytest.mark.parametrize(
  "name",
  [
    "clip_cov",
    "kl_cov",
  ],
)
def test_finite_at_extremes(name):
  assert_finite_at_extremes(make(name))
  assert_finite_at_extremes(make(name, selected=0.5))
