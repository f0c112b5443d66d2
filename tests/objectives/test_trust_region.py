"""Trust regions against their publications: DPPO, OPSM, MiniRL, MinPRO, both M2POs, BAPO."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published import (
  T,
  assert_all_hit,
  assert_finite_at_extremes,
  assert_same_gradient,
  gradient,
  make_batch,
  parts,
  ppo,
  prove,
  seq_mean_token_mean,
  seq_mean_token_sum,
  sg,
  token_mean,
)

from vespo_jax.objectives import make, mask_off_policy


def coefficients_of(objective, batch, **extras):
  """numpy: coefficients [B, T] in float32, and the metrics."""
  log_r, _, mask = parts(
    batch, "proximal_logprobs" if "proximal_logprobs" in batch else "behaviour_logprobs"
  )
  arrays = {k: jnp.asarray(x, jnp.float32) for k, x in {**batch, **extras}.items() if k != "mask"}
  log_r = jnp.asarray(log_r, jnp.float32)
  coefficients, metrics = objective(log_r, arrays.pop("advantages"), jnp.asarray(mask), arrays)
  return np.asarray(coefficients), {k: float(v) for k, v in metrics.items()}


# --- DPPO


def binary_kl(mu, pi):
  return mu * jnp.log(mu / pi) + (1 - mu) * jnp.log((1 - mu + 1e-8) / (1 - pi + 1e-8))


@pytest.mark.parametrize("kind", ["tv", "kl"])
@pytest.mark.parametrize("delta,cap", [(None, 0.0), (0.3, 0.0), (0.1, 1.5)])
def test_dppo(kind, delta, cap):
  """arXiv 2602.04879 eq. 12 with its binary divergences; Stable-RL's truncated, detached ratio."""
  name = f"dppo_{kind}"
  options = {"ratio_cap": cap} if delta is None else {"delta": delta, "ratio_cap": cap}
  delta = delta or {"tv": 0.15, "kl": 0.05}[kind]

  def published(logprobs, b):
    mu, pi = jnp.exp(b.behaviour), jnp.exp(logprobs)
    distance = jnp.abs(mu - pi) if kind == "tv" else binary_kl(mu, pi)
    r = jnp.exp(logprobs - b.behaviour)
    m = jnp.where((b.a > 0) & (r > 1) & (distance > delta), 0.0, 1.0)
    m = jnp.where((b.a < 0) & (r < 1) & (distance > delta), 0.0, m)
    weight = jnp.minimum(r, cap) if cap else r
    return token_mean(-sg(m * weight) * b.a * logprobs, b.mask)

  batch = make_batch(0)
  log_r, a, mask = parts(batch)
  mu, pi = np.exp(batch["behaviour_logprobs"]), np.exp(batch["policy_logprobs"])
  far = (np.abs(mu - pi) if kind == "tv" else np.asarray(binary_kl(mu, pi))) > delta
  assert_all_hit(
    mask, masked_good=far & (a > 0) & (log_r > 0), masked_bad=far & (a < 0) & (log_r < 0)
  )
  assert_all_hit(mask, back_good=far & (a > 0) & (log_r < 0), back_bad=far & (a < 0) & (log_r > 0))
  assert_all_hit(mask, near=~far, capped=log_r > np.log(cap or 2.0))
  prove(make(name, **options), published, batch)
  masked = far & (((a > 0) & (log_r > 0)) | ((a < 0) & (log_r < 0)))
  _, metrics = coefficients_of(make(name, **options), batch)
  np.testing.assert_allclose(metrics["objective/clip_fraction"], masked[mask].mean(), rtol=1e-6)


def two_distributions(seed, vocabulary, kept, sharpness=2.0, rows=6):
  """A batch of single tokens drawn from mu, with the full distributions mu and pi [B, 1, V], and
  the ids of mu's likeliest `kept` tokens [B, 1, K]."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(0.0, sharpness, (rows, 1, vocabulary))
  log_mu = np.asarray(jax.nn.log_softmax(logits), np.float64)
  log_pi = np.asarray(jax.nn.log_softmax(logits + rng.normal(0.0, 1.0, logits.shape)), np.float64)
  top = np.argsort(-log_mu, axis=-1)[..., :kept]
  token = top[..., :1] if kept < vocabulary else rng.integers(0, vocabulary, (rows, 1, 1))
  at = lambda x, ids: np.take_along_axis(x, ids, axis=-1)
  batch = {
    "policy_logprobs": at(log_pi, token)[..., 0],
    "behaviour_logprobs": at(log_mu, token)[..., 0],
    "advantages": rng.normal(size=rows),
    "mask": np.ones((rows, 1), bool),
  }
  extras = {"topk_denominator_logprobs": at(log_mu, top), "topk_policy_logprobs": at(log_pi, top)}
  return batch, extras, np.exp(log_mu), np.exp(log_pi)


def full(kind, p, q):
  return 0.5 * np.abs(p - q).sum(-1) if kind == "tv" else (p * np.log(p / q)).sum(-1)


@pytest.mark.parametrize("kind", ["tv", "kl"])
def test_topk_dppo(kind):
  """Stable-RL `compute_topk_kl`: the kept tokens one by one, and the mass of all others as one."""
  name, delta = f"dppo_{kind}", {"tv": 0.15, "kl": 0.05}[kind]
  batch, extras, mu, pi = two_distributions(1, vocabulary=12, kept=4, rows=40)
  distance = np.zeros((40, 1))
  for i in range(40):
    p, q = (np.exp(extras[f"topk_{of}_logprobs"][i, 0]) for of in ("denominator", "policy"))
    p, q = np.append(p, max(1 - p.sum(), 1e-12)), np.append(q, max(1 - q.sum(), 1e-12))
    distance[i] = full(kind, p, q)

  def published(logprobs, b):
    r = jnp.exp(logprobs - b.behaviour)
    outward = ((b.a > 0) & (r > 1)) | ((b.a < 0) & (r < 1))
    return token_mean(-sg(jnp.where(outward & (distance > delta), 0.0, r)) * b.a * logprobs, b.mask)

  log_r, a, mask = parts(batch)
  outward = ((a > 0) & (log_r > 0)) | ((a < 0) & (log_r < 0))
  assert_all_hit(mask, masked=outward & (distance > delta), near=outward & (distance <= delta))
  prove(make(name, divergence="topk"), published, batch, extras)
  binary, _ = coefficients_of(make(name), batch)
  topk, metrics = coefficients_of(make(name, divergence="topk"), batch, **extras)
  assert (binary != topk).any()
  np.testing.assert_allclose(metrics["objective/divergence_mean"], distance.mean(), rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["tv", "kl"]), st.sampled_from([0.5, 2.0, 4.0]))
def test_binary_topk_true(seed, kind, sharpness):
  """Coarser partitions have smaller divergences, and the whole vocabulary has the true one."""
  name, rows, vocabulary = f"dppo_{kind}", 6, 8
  for kept in (1, 3, vocabulary):
    batch, extras, mu, pi = two_distributions(seed, vocabulary, kept, sharpness, rows)
    true = full(kind, mu, pi)[:, 0]
    means = []
    for divergence in ("binary", "topk"):
      objective = make(name, divergence=divergence)
      _, metrics = coefficients_of(objective, batch, **extras)
      means.append(metrics["objective/divergence_mean"])
    assert means[0] <= means[1] + 1e-5 and means[1] <= true.mean() + 1e-5
    if kept == 1:
      np.testing.assert_allclose(
        means[0], means[1], atol=1e-5
      )  # the two tell the same tokens apart
    if kept == vocabulary:
      np.testing.assert_allclose(means[1], true.mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dppo_tv", "dppo_kl"])
def test_without_a_trust_region_dppo_is_token_importance_sampling(name):
  batch = make_batch(2)
  free, plain = make(name, delta=1e9), make("cispo", clip_low=1.0, clip_high=1e9)
  assert_same_gradient(free, plain, batch)
  capped, clipped = make(name, delta=1e9, ratio_cap=1.2), make("cispo", clip_high=0.2)
  assert_same_gradient(capped, clipped, batch)


@pytest.mark.parametrize("name", ["dppo_tv", "dppo_kl"])
def test_dppo_is_anchored_on_the_denominator(name):
  """The behaviour policy; the paper's recomputed one where a proximal policy is given."""
  batch = make_batch(3, proximal=0.5)
  recomputed = {**batch, "behaviour_logprobs": batch["proximal_logprobs"]}
  del recomputed["proximal_logprobs"]
  np.testing.assert_array_equal(gradient(make(name), batch), gradient(make(name), recomputed))


@pytest.mark.parametrize(
  "name",
  [
    "dppo_tv",
    "dppo_kl",
  ],
)
def test_a_token_that_mu_never_gives_is_outside_the_trust_region(name):
  """mu = 0 and pi = 1/2: the total variation is 1/2, the divergence log 2."""
  batch = {
    "policy_logprobs": np.log([[0.5, 0.5]]),
    "behaviour_logprobs": np.array([[-np.inf, -1e4]]),
    "advantages": np.ones(1),
    "mask": np.ones((1, 2), bool),
  }
  np.testing.assert_array_equal(coefficients_of(make(name), batch)[0], [[0.0, 0.0]])


def test_dppo_refuses_what_it_does_not_know():
  with pytest.raises(ValueError, match="divergence='full'.*binary.*topk"):
    make("dppo_tv", divergence="full")
  with pytest.raises(ValueError, match=r"needs extras\['topk_denominator_logprobs'\]"):
    coefficients_of(make("dppo_kl", divergence="topk"), make_batch())


# --- OPSM


@pytest.mark.parametrize("delta", [0.5, 0.2])
def test_opsm(delta):
  """arXiv 2512.02556 section 3.1 on GRPO: a dropped sequence stays in the denominator."""

  def published(logprobs, b):
    drift = jnp.where(b.mask, b.behaviour - logprobs, 0.0).sum(1) / np.maximum(b.mask.sum(1), 1)
    m = sg(jnp.where((b.a < 0) & (drift[:, None] > delta), 0.0, 1.0))
    r = jnp.exp(logprobs - b.behaviour)
    return seq_mean_token_mean(m * ppo(r, b.a, 1 - 0.2, 1 + 0.28), b.mask)

  batch = make_batch(14, drift=-0.3)
  log_r, a, mask = parts(batch)
  drift = (-log_r * mask).sum(1, keepdims=True) / np.maximum(mask.sum(1, keepdims=True), 1)
  assert_all_hit(mask, dropped=(a < 0) & (drift > delta), spared=(a > 0) & (drift > delta))
  assert_all_hit(mask, near=(a < 0) & (drift <= delta))
  prove(make("opsm", delta=delta), published, batch)
  if delta == 0.5:
    prove(make("opsm"), published, batch)
  _, metrics = coefficients_of(make("opsm", delta=delta), batch)
  dropped = np.broadcast_to((a < 0) & (drift > delta), mask.shape)[mask].mean()
  np.testing.assert_allclose(metrics["objective/opsm_fraction"], dropped, rtol=1e-6)


def test_opsm_measures_the_drift_from_the_behaviour_policy():
  """DeepSeek-V3.2 takes the sampler's own log-probs, so that the drift holds the mismatch too (TRL:
  `sampling_per_token_logps`); PPO's ratio stays against the proximal policy."""

  def published(logprobs, b):
    drift = jnp.where(b.mask, b.behaviour - b.policy, 0.0).sum(1) / np.maximum(b.mask.sum(1), 1)
    m = jnp.where((b.a < 0) & (drift[:, None] > 0.3), 0.0, 1.0)
    return seq_mean_token_mean(m * ppo(jnp.exp(logprobs - b.proximal), b.a, 0.8, 1.28), b.mask)

  prove(make("opsm", delta=0.3), published, make_batch(15, drift=-0.3, proximal=0.3))


def test_opsm_of_a_huge_delta_is_grpo():
  batch = make_batch(5, drift=-0.5)
  clips = {"clip_low": 0.1, "clip_high": 0.4, "dual_clip": 2.0}
  opsm = make("opsm", delta=1e9, **clips)
  assert_same_gradient(opsm, make("grpo", **clips), batch)


@pytest.mark.parametrize("name", ["vespo", "grpo", "gspo", "sapo", "reinforce", "topr", "kl_cov"])
def test_any_objective_takes_off_policy_masking(name):
  batch = make_batch(6, drift=-0.3)
  log_r, a, mask = parts(batch)
  drift = (-log_r * mask).sum(1) / np.maximum(mask.sum(1), 1)
  kept = ((batch["advantages"] >= 0) | (drift <= 0.4))[:, None]
  assert_all_hit(mask, kept=kept)
  options = {"selected": 0.3} if name == "kl_cov" else {}
  masked = gradient(mask_off_policy(make(name, **options), 0.4), batch)
  np.testing.assert_array_equal(masked, gradient(make(name, **options), batch) * kept)


def test_masking_wants_a_positive_delta():
  with pytest.raises(ValueError, match="delta=0"):
    make("opsm", delta=0)


# --- MiniRL and MinPRO


@pytest.mark.parametrize("proximal", [0.3, None])
@pytest.mark.parametrize(
  "options", [{}, {"clip_low": 0.1, "clip_high": 0.4, "ratio_cap": 2.0}, {"ratio_cap": 0.0}]
)
def test_minirl(proximal, options):
  """arXiv 2512.01374: the weight is pi / mu, capped; the mask is on pi / pi_prox; a sum over
  tokens. Without a proximal policy both ratios are pi / mu."""
  low, high = options.get("clip_low", 0.2), options.get("clip_high", 0.27)
  cap = options.get("ratio_cap", 5.0) or np.inf

  def published(logprobs, b):
    staleness = jnp.exp(logprobs - (b.behaviour if b.proximal is None else b.proximal))
    m = jnp.where((b.a > 0) & (staleness > 1 + high), 0.0, 1.0)
    m = jnp.where((b.a < 0) & (staleness < 1 - low), 0.0, m)
    weight = jnp.minimum(jnp.exp(logprobs - b.behaviour), cap)
    return seq_mean_token_sum(-sg(m * weight) * b.a * logprobs, b.mask)

  batch = make_batch(7, spread=1.0, proximal=proximal)
  log_r, a, mask = parts(batch, "behaviour_logprobs" if proximal is None else "proximal_logprobs")
  log_w, _, _ = parts(batch)
  assert_all_hit(
    mask, high=(a > 0) & (log_r > np.log(1 + high)), low=(a < 0) & (log_r < np.log(1 - low))
  )
  assert_all_hit(mask, capped=(a < 0) & (log_w > np.log(2 if cap > 10 else cap)))
  prove(make("minirl", **options), published, batch)


@pytest.mark.parametrize("options", [{}, {"clip_low": 0.4, "clip_high": 0.6}, {"cap_prefix": True}])
def test_minpro(options):
  """arXiv 2601.22718, one token after the other: (the least ratio before it) x (its own)."""
  low, high = options.get("clip_low", 1.0), options.get("clip_high", 0.28)

  def published(logprobs, b):
    ratios = np.exp(np.asarray(b.policy - b.behaviour))
    coefficients = np.zeros_like(ratios)
    for i in range(b.mask.shape[0]):
      seen = []
      for t in range(b.mask.shape[1]):
        if b.mask[i, t]:
          least = min(seen) if seen else 1.0
          if options.get("cap_prefix"):
            least = min(1.0, least)
          coefficients[i, t] = np.clip(least * ratios[i, t], 1 - low, 1 + high)
          seen.append(ratios[i, t])
    return token_mean(-coefficients * b.a * logprobs, b.mask)

  batch = make_batch(8)
  log_r, _, mask = parts(batch)
  least = np.full(mask.shape, np.nan)
  for i in range(mask.shape[0]):
    for t in range(1, T):
      before = log_r[i, :t][mask[i, :t]]
      least[i, t] = before.min() if before.size else np.nan
  raw = np.exp(np.nan_to_num(least) + log_r)
  assert_all_hit(mask, first=np.isnan(least), high=raw > 1 + high, above_one=least > 0)
  if low < 1:
    assert_all_hit(mask, low=raw < 1 - low)
  prove(make("minpro", **options), published, batch)
  _, metrics = coefficients_of(make("minpro"), batch)
  np.testing.assert_allclose(
    metrics["objective/clip_fraction"], (raw > 1.28)[mask].mean(), rtol=1e-6
  )


# --- M2PO


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
  [
    (0.04, 0.3, 0.5, "floor"),
    (0.25, 0.3, 0.5, "tau"),
    (0.1, 0.3, 0.5, "both"),
    (0.02, 0.01, 0.01, "tau"),
    (9.0, 0.3, 0.5, "none"),
    (1e-9, 0.1, 0.1, "zero"),
  ],
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


@pytest.mark.parametrize("proximal", [0.4, None])
@pytest.mark.parametrize("threshold,dual_clip", [(0.04, 0.0), (0.1, 1.5), (9.0, 0.0)])
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


@pytest.mark.parametrize(
  "target,ends",
  [(0.5, "start"), (1.0, "high"), (9.0, "end")],
)
@pytest.mark.parametrize("options", [{}, {"low_end": 0.93, "high_end": 1.77, "step": 0.07}])
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


def test_bapo_refuses_steps_that_lead_nowhere():
  for options in ({"step": 0.0}, {"low_end": 0.5}, {"high_end": 1.0}):
    with pytest.raises(ValueError, match="no such steps"):
      make("bapo", **options)


@pytest.mark.parametrize(
  "name", ["dppo_tv", "dppo_kl", "opsm", "minirl", "minpro", "m2po", "m2po_mask", "bapo"]
)
def test_finite_at_extremes(name):
  assert_finite_at_extremes(make(name))
