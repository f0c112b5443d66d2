"""Trust regions against their publications: DPPO, MiniRL and MinPRO."""

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
  coefficients_of,
  gradient,
  make_batch,
  parts,
  prove,
  seq_mean_token_sum,
  sg,
  token_mean,
)

from tests.marks import slow_but
from vespo_jax.objectives import make


def binary_kl(mu, pi):
  return mu * jnp.log(mu / pi) + (1 - mu) * jnp.log((1 - mu + 1e-8) / (1 - pi + 1e-8))


@pytest.mark.parametrize(
  "kind,delta,cap",
  slow_but(
    [(kind, *case) for kind in ("tv", "kl") for case in ((None, 0.0), (0.3, 0.0), (0.1, 1.5))],
    ("tv", None, 0.0),
    ("kl", None, 0.0),
    ("kl", 0.1, 1.5),
  ),
)
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


@pytest.mark.parametrize("name", ["dppo_tv", "dppo_kl", "minirl", "minpro"])
def test_finite_at_extremes(name):
  assert_finite_at_extremes(make(name))
