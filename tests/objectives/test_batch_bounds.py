"""Clips whose bounds the whole minibatch sets, against their publications: M2POs and BAPO."""

import jax.numpy as jnp
import numpy as np
import pytest
from published import (
  assert_all_hit,
  assert_finite_at_extremes,
  assert_same_gradient,
  coefficients_of,
  make_batch,
  parts,
  ppo,
  prove,
  token_mean,
)

from tests.marks import slow_but
from vespo_jax.objectives import make


def solve_tau(squares, budget):
  """M2PO `_solve_tau_from_sorted_delta2`: up the sorted squares, until capping all the others at
  this one is over the budget; then the one before. None where nothing has to be capped."""
  squares, n, seen = sorted(squares), len(squares), 0.0
  if not n or sum(squares) / n <= budget + 1e-12:
    return None
  for k, square in enumerate(squares):
    seen += square
    if (square - 1e-12) * (n - k - 1) + seen >= budget * n - 1e-12:
      return 0.0 if k == 0 else (squares[k - 1] - 1e-12) ** 0.5


def leaving(log_r, a, mask):
  return mask & (((a > 0) & (log_r > 0)) | ((a < 0) & (log_r < 0)))


def m2po_bounds(log_r, a, mask, budget, clip_low, clip_high):
  """The bounds on the ratio. In float32 the official 1e-12 is lost in rounding, so that the token
  at the cap is inside; 2^-22 says so however exp rounds."""
  tau = solve_tau((log_r[leaving(log_r, a, mask)].astype(float) ** 2).tolist(), budget)
  low, high = (0.0, 1e5) if tau is None else (np.exp(-tau), np.exp(tau))
  slack = 2.0**-22 if tau and log_r.dtype == np.float32 else 0.0
  return min(low * (1 - slack), 1 - clip_low), max(high * (1 + slack), 1 + clip_high)


@pytest.mark.parametrize(
  "budget,clip_low,clip_high,binds",
  slow_but(
    [
      (0.04, 0.3, 0.5, "floor"),
      (0.25, 0.3, 0.5, "tau"),
      (0.1, 0.3, 0.5, "both"),
      (0.02, 0.01, 0.01, "tau"),
      (9.0, 0.3, 0.5, "none"),
      (1e-9, 0.1, 0.1, "zero"),
    ],
    (0.04, 0.3, 0.5, "floor"),
    (0.1, 0.3, 0.5, "both"),
    (1e-9, 0.1, 0.1, "zero"),
  ),
)
def test_m2po(budget, clip_low, clip_high, binds):
  """Infini-AI-Lab/M2PO `kpo_clip_harmful_tokens` and `compute_m2po_policy_loss`."""

  def published(logprobs, b):
    log_r = np.asarray(b.policy - b.behaviour)
    low, high = m2po_bounds(log_r, np.asarray(b.a), b.mask, budget, clip_low, clip_high)
    return token_mean(ppo(jnp.exp(logprobs - b.behaviour), b.a, low, high), b.mask)

  batch = make_batch(9)
  log_r, a, mask = parts(batch)
  tau = solve_tau((log_r[leaving(log_r, a, mask)] ** 2).tolist(), budget)
  low, high = m2po_bounds(log_r, a, mask, budget, clip_low, clip_high)
  case = {
    "none": tau is None and low == 0 and high == 1e5,
    "zero": tau == 0.0 and low == 1 - clip_low,
    "floor": bool(tau) and low == 1 - clip_low and high == 1 + clip_high,
    "tau": bool(tau) and low < 1 - clip_low and high > 1 + clip_high,
    "both": bool(tau) and (low == 1 - clip_low) != (high == 1 + clip_high),
  }
  assert case[binds], (tau, low, high)
  if binds != "none":
    assert_all_hit(mask, low=(a < 0) & (log_r < np.log(low)), high=(a > 0) & (log_r > np.log(high)))
  objective = make("m2po", budget=budget, clip_low=clip_low, clip_high=clip_high)
  prove(objective, published, batch)
  _, metrics = coefficients_of(objective, batch)
  np.testing.assert_allclose(metrics["objective/ratio_low"], low, rtol=1e-5)
  np.testing.assert_allclose(metrics["objective/ratio_high"], high, rtol=1e-5)
  if (budget, clip_low) == (0.04, 0.3):
    prove(make("m2po"), published, batch)


def test_m2po_where_no_token_leaves():
  batch = make_batch(10)
  log_r, _, mask = parts(batch)
  batch["advantages"] = np.where((log_r * mask).sum(1) > 0, -1.0, 1.0)
  moved = np.where(batch["advantages"][:, None] > 0, -np.abs(log_r), np.abs(log_r))
  batch["behaviour_logprobs"] = batch["policy_logprobs"] - moved
  assert not leaving(moved, batch["advantages"][:, None], mask).any()
  assert_same_gradient(make("m2po"), make("cispo", clip_high=1e9), batch)


def test_m2po_where_every_token_leaves_and_none_fits():
  """The cap is then 0, not the least of their log ratios; the floor remains."""
  log_ratio, mask = jnp.asarray([[0.3, 0.4, 0.5]]), jnp.ones((1, 3), bool)
  for clip_high, expected in ((0.2, [0, 0, 0]), (0.45, [np.exp(0.3), 0, 0])):
    objective = make("m2po", budget=0.04, clip_low=0.1, clip_high=clip_high)
    coefficients, metrics = objective(log_ratio, jnp.ones(1), mask)
    np.testing.assert_allclose(coefficients, [expected], rtol=1e-6)
    np.testing.assert_allclose(metrics["objective/ratio_high"], 1 + clip_high, rtol=1e-6)


@pytest.mark.parametrize(
  "proximal,threshold,dual_clip",
  slow_but(
    [(p, *rest) for p in (0.4, None) for rest in ((0.04, 0.0), (0.1, 1.5), (9.0, 0.0))],
    (0.4, 0.04, 0.0),
    (None, 0.1, 1.5),
  ),
)
def test_m2po_mask(proximal, threshold, dual_clip):
  """AReaL: the tokens of largest mismatch of behaviour and proximal policy are dropped, one by one,
  until the mean of the rest is below the threshold; then PPO on pi / pi_prox, over all tokens."""

  def kept_of(b):
    kept = b.mask.copy()
    square = np.asarray((b.policy if b.proximal is None else b.proximal) - b.behaviour) ** 2
    while kept.any() and square[kept].mean() >= threshold:
      kept[np.unravel_index(np.argmax(np.where(kept, square, -1.0)), kept.shape)] = False
    return kept

  def published(logprobs, b):
    dropped[b.policy.dtype.itemsize] = 1 - kept_of(b).sum() / b.mask.sum()
    r = jnp.exp(logprobs - (b.behaviour if b.proximal is None else b.proximal))
    return token_mean(jnp.where(kept_of(b), ppo(r, b.a, 0.8, 1.2, dual_clip), 0.0), b.mask)

  dropped = {}
  batch = make_batch(11, proximal=proximal)
  log_r, a, mask = parts(batch, "behaviour_logprobs" if proximal is None else "proximal_logprobs")
  assert_all_hit(mask, low=(a < 0) & (log_r < np.log(0.8)), high=(a > 0) & (log_r > np.log(1.2)))
  objective = make("m2po_mask", threshold=threshold, dual_clip=dual_clip)
  prove(objective, published, batch)
  assert (0 < dropped[8] < 1) == (threshold < 9)
  _, metrics = coefficients_of(objective, batch)
  np.testing.assert_allclose(metrics["objective/dropped_fraction"], dropped[8], atol=1e-6)
  if threshold == 0.04:
    prove(make("m2po_mask"), published, batch)


def test_m2po_mask_drops_one_by_one_among_equals():
  """Which of them goes is not stated; how many do is."""
  log_ratio, mask = jnp.asarray([[0.3, 0.0, 0.3, 0.3]]), jnp.ones((1, 4), bool)
  extras = {"policy_logprobs": log_ratio - 1, "behaviour_logprobs": jnp.full((1, 4), -1.0)}
  for threshold, kept in ((0.04, 1), (0.05, 2), (0.065, 3), (0.07, 4)):  # means 0, .045, .06, .0675
    objective = make("m2po_mask", threshold=threshold, clip_high=9.0)
    coefficients, _ = objective(log_ratio, jnp.ones(1), mask, extras)
    assert (coefficients > 0).sum() == kept and coefficients[0, 1] > 0


def test_m2po_mask_keeps_one_token_where_none_fits():
  """AReaL masks all but the one of least mismatch."""
  log_ratio, mask = jnp.asarray([[0.4, -0.3, 0.5]]), jnp.ones((1, 3), bool)
  extras = {"policy_logprobs": log_ratio - 1, "behaviour_logprobs": jnp.full((1, 3), -1.0)}
  objective = make("m2po_mask", clip_low=0.9, clip_high=9.0)
  coefficients, _ = objective(log_ratio, jnp.ones(1), mask, extras)
  np.testing.assert_allclose(coefficients, [[0.0, np.exp(-0.3), 0.0]], rtol=1e-6)


# --- BAPO


def bapo_bounds(r, a, mask, low, low_end, high, high_end, step, target):
  """BAPO `compute_policy_loss_bapo`: its two while loops."""

  def balance():
    good = (np.minimum(r, high) * a)[(a >= 0) & mask].sum()
    bad = -(np.maximum(r, low) * a)[(a < 0) & mask].sum()
    return np.inf if bad <= 0 else good / (bad + 1e-8)

  a = np.broadcast_to(a, r.shape)
  while balance() < target and low < low_end:
    low = min(low + step, low_end)
  while balance() < target and high < high_end:
    high = min(high + step, high_end)
  return low, high


OTHER = {"low_end": 0.93, "high_end": 1.77, "step": 0.07}


@pytest.mark.parametrize(
  "target,ends,options",
  slow_but(
    [
      (*case, options)
      for case in ((0.5, "start"), (1.0, "high"), (9.0, "end"))
      for options in ({}, OTHER)
    ],
    (1.0, "high", {}),
    (9.0, "end", OTHER),
  ),
)
def test_bapo(target, ends, options):
  """arXiv 2510.18927 algorithm 1, with the dual clip of its recipe."""
  settings = {"low_start": 0.6, "low_end": 0.8, "high_start": 1.2, "high_end": 2.0, "step": 0.05}
  settings |= options
  dual_clip = 3.0

  def bounds_of(r, a, mask):
    return bapo_bounds(r, a, mask, *settings.values(), target)

  def published(logprobs, b):
    r = np.exp(np.asarray(b.policy - b.behaviour))
    low, high = bounds_of(r, np.asarray(b.a), b.mask)
    return token_mean(ppo(jnp.exp(logprobs - b.behaviour), b.a, low, high, dual_clip), b.mask)

  batch = make_batch(12, spread=0.8)
  log_r, a, mask = parts(batch)
  r = np.exp(log_r)
  low, high = bounds_of(r, a, mask)
  found = {
    "start": (low, high) == (0.6, 1.2),
    "high": low == settings["low_end"] and 1.2 < high < settings["high_end"],
    "end": (low, high) == (settings["low_end"], settings["high_end"]),
  }
  assert found[ends], (low, high)
  assert_all_hit(mask, low=(a < 0) & (r < low), high=(a > 0) & (r > high), dual=(a < 0) & (r > 3))
  objective = make("bapo", target=target, **options)
  prove(objective, published, batch)
  if target == 1.0 and not options:
    prove(make("bapo"), published, batch)
  _, metrics = coefficients_of(objective, batch)
  np.testing.assert_allclose(
    [metrics["objective/ratio_low"], metrics["objective/ratio_high"]], [low, high], rtol=1e-6
  )


def test_bapo_without_bad_samples_keeps_its_first_bounds():
  batch = make_batch(13)
  batch["advantages"] = np.abs(batch["advantages"])
  _, metrics = coefficients_of(make("bapo"), batch)
  np.testing.assert_allclose(metrics["objective/ratio_high"], 1.2, rtol=1e-6)
  batch["advantages"] = -batch["advantages"]
  _, metrics = coefficients_of(make("bapo"), batch)
  np.testing.assert_allclose(metrics["objective/ratio_high"], 2.0, rtol=1e-6)


def test_bapo_has_no_gradient_beyond_twenty_nats():
  """Where the source's bound on the log ratio is differentiated."""
  log_ratio = jnp.asarray([[0.0, -19.0, -21.0]])
  coefficients, _ = make("bapo")(log_ratio, jnp.ones(1), jnp.ones((1, 3), bool))
  np.testing.assert_allclose(coefficients, [[1.0, np.exp(-19.0), 0.0]], rtol=1e-6)


def test_bapo_refuses_steps_that_lead_nowhere():
  for options, message in (
    ({"step": 0.0}, "step=0.0 must be above 0"),
    ({"step": 1e-9}, "at most 100 steps"),
    ({"low_end": 0.5}, "low_start=0.6 must be at most low_end=0.5"),
    ({"high_end": 1.0}, "high_start=1.2 must be at most high_end=1.0"),
  ):
    with pytest.raises(ValueError, match=message):
      make("bapo", **options)


@pytest.mark.parametrize("name", ["m2po", "m2po_mask", "bapo"])
def test_finite_at_extremes(name):
  assert_finite_at_extremes(make(name))
