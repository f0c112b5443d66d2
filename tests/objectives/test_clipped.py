"""Clips and gates against their publications: Dr.GRPO, DAPO, GSPO, LUSPO, GMPO, SAPO, CISPO.

GRPO itself is in `test_grpo.py`.
"""

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
  seq_mean_token_mean,
  sequence_ratio,
  sg,
  token_mean,
)

from tests.marks import slow_but
from vespo_jax.objectives import make

NAMES = ("dr_grpo", "dapo", "gspo", "gspo_token", "luspo", "gmpo", "sapo", "cispo")


@pytest.mark.parametrize("low,high,dual_clip", [(0.2, 0.2, 0.0), (0.3, 0.1, 2.0)])
def test_dr_grpo(low, high, dual_clip):
  """arXiv 2503.20783 eq. 3: the sum of each response over a constant, not over its length."""

  def published(logprobs, b):
    loss = ppo(jnp.exp(logprobs - b.behaviour), b.a, 1 - low, 1 + high, dual_clip)
    rows = jnp.sum(jnp.where(b.mask, loss, 0.0), axis=1) / b.mask.shape[1]
    return jnp.sum(rows) / b.mask.any(1).sum()

  batch = make_batch(1)
  log_r, a, mask = parts(batch)
  r = np.exp(log_r)
  assert_all_hit(
    mask, low=(a < 0) & (r < 1 - low), high=(a > 0) & (r > 1 + high), free=(a < 0) & (r > 1 + high)
  )
  prove(make("dr_grpo", clip_low=low, clip_high=high, dual_clip=dual_clip), published, batch)
  if (low, high, dual_clip) == (0.2, 0.2, 0.0):
    prove(make("dr_grpo"), published, batch)


@pytest.mark.parametrize("low,high,dual_clip", [(0.2, 0.28, 10.0), (0.1, 0.4, 3.0), (0.2, 0.28, 0)])
def test_dapo(low, high, dual_clip):
  """arXiv 2503.14476 eq. 8, with the dual clip of its recipe."""

  def published(logprobs, b):
    r = jnp.exp(logprobs - b.behaviour)
    return token_mean(ppo(r, b.a, 1 - low, 1 + high, dual_clip), b.mask)

  batch = make_batch(2, spread=1.5)
  log_r, a, mask = parts(batch)
  r = np.exp(log_r)
  assert_all_hit(mask, low=(a < 0) & (r < 1 - low), high=(a > 0) & (r > 1 + high))
  assert_all_hit(mask, dual=(a < 0) & (r > (dual_clip or 10)), kept=(a > 0) & (r < 1 + high))
  prove(make("dapo", clip_low=low, clip_high=high, dual_clip=dual_clip), published, batch)
  if (low, high, dual_clip) == (0.2, 0.28, 10.0):
    prove(make("dapo"), published, batch)


def gspo(low, high, times_length):
  """arXiv 2507.18071 eq. 5 and 7: one clipped loss per sequence; LUSPO's is times its length."""

  def published(logprobs, b):
    s = sequence_ratio(logprobs - b.behaviour, b.mask, length_norm=1.0)
    loss = ppo(s, b.a, 1 - low, 1 + high)[:, 0]
    loss = loss * b.mask.sum(1) if times_length else loss
    return jnp.mean(loss[b.mask.any(1)])

  return published


def gspo_token(low, high):
  """arXiv 2507.18071 eq. 13-14: sg(s) pi / sg(pi) in the place of s."""

  def published(logprobs, b):
    s = sequence_ratio(logprobs - b.behaviour, b.mask, length_norm=1.0)
    return seq_mean_token_mean(
      ppo(sg(s) * jnp.exp(logprobs - sg(logprobs)), b.a, 1 - low, 1 + high), b.mask
    )

  return published


@pytest.mark.parametrize("name", ["gspo", "gspo_token", "luspo"])
@pytest.mark.parametrize("bounds,spread", [("default", 1e-3), ((0.15, 0.25), 0.6)])
def test_gspo_family(name, bounds, spread):
  defaults = {"gspo": (3e-4, 4e-4), "gspo_token": (3e-4, 4e-4), "luspo": (2e-3, 2.5e-3)}
  low, high = defaults[name] if bounds == "default" else bounds
  batch = make_batch(3, spread=4e-3 if name == "luspo" and bounds == "default" else spread)
  log_r, a, mask = parts(batch)
  s = np.exp((log_r * mask).sum(1) / np.maximum(mask.sum(1), 1))[:, None]
  assert_all_hit(mask, low=(a < 0) & (s < 1 - low), high=(a > 0) & (s > 1 + high))
  assert_all_hit(mask, above=(a < 0) & (s > 1 + high), below=(a > 0) & (s < 1 - low))
  assert_all_hit(mask, between=(s > 1 - low) & (s < 1 + high))
  published = gspo_token(low, high) if name == "gspo_token" else gspo(low, high, name == "luspo")
  objective = make(name) if bounds == "default" else make(name, clip_low=low, clip_high=high)
  prove(objective, published, batch)


def test_gspo_token_is_gspo():
  batch = make_batch(4)
  clips = {"clip_low": 0.1, "clip_high": 0.2}
  assert_same_gradient(make("gspo_token", **clips), make("gspo", **clips), batch)


def test_gspo_token_is_gspo_but_for_its_bound():
  log_ratio, bad, mask = jnp.asarray([[11.0, 13.0]]), -jnp.ones(1), jnp.ones((1, 2), bool)
  plain, _ = make("gspo")(log_ratio, bad, mask)
  bounded, _ = make("gspo_token")(log_ratio, bad, mask)
  np.testing.assert_allclose(plain, np.exp([[12.0, 12.0]]), rtol=1e-6)
  np.testing.assert_array_equal(bounded, [[0.0, 0.0]])


def test_gspo_token_has_no_gradient_beyond_its_bound():
  """verl's, which bounds log s after it has put the gradient in."""

  def published(logprobs, b):
    log_s = jnp.log(sequence_ratio(b.policy - b.behaviour, b.mask, length_norm=1.0))
    s = jnp.exp(jnp.minimum(logprobs - b.policy + log_s, 10.0))
    return seq_mean_token_mean(ppo(s, b.a, 1 - 3e-4, 1 + 4e-4), b.mask)

  batch = make_batch(11)
  batch["behaviour_logprobs"][::2] -= 8.0
  batch["behaviour_logprobs"][::4] -= 4.0
  prove(make("gspo_token"), published, batch)
  s = (parts(batch)[0] * batch["mask"]).sum(1) / np.maximum(batch["mask"].sum(1), 1)
  bad = batch["mask"] & (batch["advantages"] < 0)[:, None]
  assert_all_hit(bad, bounded=(s > 10)[:, None], free=((s > 5) & (s < 10))[:, None])


def published_terms(name):
  """The loss of a token, from its ratio and advantage; bounds are the defaults."""
  clips = {"grpo": (0.8, 1.28), "dr_grpo": (0.8, 1.2), "dapo": (0.8, 1.28, 10.0)}
  if name == "sapo":
    tau = lambda a: jnp.where(a > 0, 1.0, 1.05)
    return lambda r, a: -a * 4 / tau(a) / (1 + jnp.exp(-tau(a) * (r - 1)))
  return lambda r, a: ppo(r, a, *clips[name])


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "sapo"])
def test_beyond_twenty_nats_a_token_has_no_gradient(name):
  """As where verl's bound on the log ratio is differentiated; its loss is that of the bound."""

  def published(logprobs, b):
    r = jnp.exp(jnp.clip(logprobs - b.behaviour, -20.0, 20.0))
    return token_mean(published_terms(name)(r, b.a), b.mask)

  batch = make_batch(12, spread=1.5)
  batch["behaviour_logprobs"][::3] -= 30.0
  batch["policy_logprobs"][1::3] -= 30.0
  log_r, a, mask = parts(batch)
  assert_all_hit(mask, up=(a < 0) & (log_r > 20), down=(a > 0) & (log_r < -20))
  prove(make(name), published, batch, aggregation="token-mean")


def test_luspo_is_gspo_times_the_length():
  batch = make_batch(5)
  clips = {"clip_low": 0.1, "clip_high": 0.2}
  luspo, gspo = (gradient(make(name, **clips), batch) for name in ("luspo", "gspo"))
  assert np.abs(gspo).max() > 0
  np.testing.assert_allclose(luspo, gspo * batch["mask"].sum(1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("low,high", [(0.4, 0.4), (0.2, 0.7)])
def test_gmpo(low, high):
  """arXiv 2507.20673 eq. 4: the product of clipped ratios, to the power 1 / T."""

  def published(logprobs, b):
    sign, r = jnp.sign(b.a), jnp.exp(logprobs - b.behaviour)
    clipped = jnp.clip(r, np.exp(-low), np.exp(high))
    kept = jnp.minimum(r**sign, clipped**sign) ** sign
    product = jnp.prod(jnp.where(b.mask, kept, 1.0), axis=1)[b.mask.any(1)]
    length = b.mask.sum(1)[b.mask.any(1)]
    return jnp.mean(-b.a[b.mask.any(1), 0] * product ** (1.0 / length))

  batch = make_batch(6)
  log_r, a, mask = parts(batch)
  assert_all_hit(mask, low=(a < 0) & (log_r < -low), high=(a > 0) & (log_r > high))
  assert_all_hit(mask, above=(a < 0) & (log_r > high), below=(a > 0) & (log_r < -low))
  prove(make("gmpo", clip_low=low, clip_high=high), published, batch)
  if (low, high) == (0.4, 0.4):
    prove(make("gmpo"), published, batch)


@pytest.mark.parametrize("tau_pos,tau_neg", [(1.0, 1.05), (0.5, 3.0)])
def test_sapo(tau_pos, tau_neg):
  """arXiv 2511.20347 eq. 5-7: -A 4 / tau sigmoid(tau (r - 1)), differentiated through r."""

  def published(logprobs, b):
    r = jnp.exp(logprobs - b.behaviour)
    tau = jnp.where(b.a > 0, tau_pos, tau_neg)
    return seq_mean_token_mean(-b.a * 4 / tau / (1 + jnp.exp(-tau * (r - 1))), b.mask)

  batch = make_batch(7, spread=0.8)
  log_r, a, mask = parts(batch)
  assert_all_hit(mask, good=a > 0, bad=a < 0, far_up=log_r > 1, far_down=log_r < -1)
  prove(make("sapo", tau_pos=tau_pos, tau_neg=tau_neg), published, batch)
  if (tau_pos, tau_neg) == (1.0, 1.05):
    prove(make("sapo"), published, batch)


@pytest.mark.parametrize(
  "low,high", slow_but([(1.0, 0.2), (0.3, 0.5), (10.0, 0.2), (1.0, 4.0)], (1.0, 0.2), (0.3, 0.5))
)
def test_cispo(low, high):
  """arXiv 2506.13585 eq. 4-5: the clipped ratio is a weight, and no token is without gradient."""

  def published(logprobs, b):
    weight = sg(jnp.clip(jnp.exp(logprobs - b.behaviour), 1 - low, 1 + high))
    return token_mean(-weight * b.a * logprobs, b.mask)

  batch = make_batch(8, spread=1.2)
  log_r, a, mask = parts(batch)
  r = np.exp(log_r)
  assert_all_hit(mask, high=r > 1 + high, bad_high=(a < 0) & (r > 1 + high))
  if low < 1:
    assert_all_hit(mask, low=r < 1 - low, good_low=(a > 0) & (r < 1 - low))
  prove(make("cispo", clip_low=low, clip_high=high), published, batch)
  if (low, high) == (1.0, 0.2):
    prove(make("cispo"), published, batch)
    assert (gradient(make("cispo"), batch) != 0)[mask & (a != 0)].all()


def test_clip_fractions_count_the_tokens_without_their_own_ratio():
  batch = make_batch(9)
  log_r, a, mask = parts(batch)
  given = [jnp.asarray(x, jnp.float32) for x in (log_r, batch["advantages"])]
  r, s = np.exp(log_r), np.exp((log_r * mask).sum(1) / np.maximum(mask.sum(1), 1))[:, None]
  cut = lambda x: ((a > 0) & (x > 1.2)) | ((a < 0) & (x < 0.9))
  expected = {
    "dr_grpo": cut(r),
    "dapo": cut(r),
    "gspo": cut(s),
    "gspo_token": cut(s),
    "luspo": cut(s),
    "cispo": (r > 1.2) | (r < 0.9),
    "gmpo": ((a > 0) & (log_r > 0.2)) | ((a < 0) & (log_r < -0.1)),
  }
  for name, where in expected.items():
    _, metrics = make(name, clip_low=0.1, clip_high=0.2)(*given, jnp.asarray(mask))
    wanted = np.broadcast_to(where, mask.shape)[mask].mean()
    np.testing.assert_allclose(metrics["objective/clip_fraction"], wanted, rtol=1e-6, err_msg=name)


def test_of_single_tokens_a_sequence_is_a_token():
  batch = make_batch(10, width=1, rows=40)
  log_r, a, mask = parts(batch)
  assert_all_hit(mask, low=(a < 0) & (log_r < -0.4), high=(a > 0) & (log_r > 0.4))
  clips = {"clip_low": 0.1, "clip_high": 0.2}
  grpo = make("grpo", **clips)
  for name in ("gspo", "gspo_token", "luspo"):
    assert_same_gradient(make(name, **clips), grpo, batch)
  in_ratios = make("grpo", clip_low=1 - np.exp(-0.4), clip_high=np.exp(0.3) - 1)
  in_logs = make("gmpo", clip_low=0.4, clip_high=0.3)
  assert_same_gradient(in_logs, in_ratios, batch)


@pytest.mark.parametrize("name", NAMES)
def test_finite_at_extremes(name):
  assert_finite_at_extremes(make(name))
