"""What PPO, REINFORCE and VESPO make of rollout corrections, and what they refuse."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import gradient, make_batch, parts, ppo, prove, sequence_ratio, token_mean

from vespo_jax import objectives
from vespo_jax.objectives import corrections, make


@pytest.mark.parametrize(
  "name,dual_clip,correction",
  [("grpo", 0.0, "token_tis"), ("grpo", 1.5, "sequence_tis"), ("dapo", 10.0, "icepop")],
)
def test_decoupled_ppo(name, dual_clip, correction):
  """AReaL (arXiv 2505.24298): pi_prox / pi_behaviour, bounded, times PPO's clip on pi / pi_prox,
  and no gradient through the weight."""

  def published(logprobs, b):
    w = jnp.exp(b.proximal - b.behaviour)
    if correction == "sequence_tis":
      w = sequence_ratio(b.proximal - b.behaviour, b.mask)
    w = jnp.where((w < 0.5) | (w > 5.0), 0.0, w) if correction == "icepop" else jnp.minimum(w, 2.0)
    return token_mean(w * ppo(jnp.exp(logprobs - b.proximal), b.a, 0.8, 1.28, dual_clip), b.mask)

  batch = make_batch(5, spread=1.0, proximal=0.5)
  log_r, a, mask = parts(batch, "proximal_logprobs")
  assert ((a < 0) & (log_r < np.log(0.8)) & mask).any()
  objective = make(name, clip_low=0.2, clip_high=0.28, dual_clip=dual_clip)
  prove(objective, published, batch, correction=correction, aggregation="token-mean")
  untouched = gradient(objective, batch, aggregation="token-mean")
  assert np.abs(untouched - gradient(objective, batch, correction=correction)).max() > 1e-3


@pytest.mark.parametrize("correction", ["token_tis", "sequence_tis", "sequence_mis"])
def test_reinforce_is_corrected_for_the_policy_itself(correction):
  """verl `bypass_pg_is`: -A log pi times the bounded pi / mu, detached."""

  def published(logprobs, b):
    w = jnp.exp(b.policy - b.behaviour)
    w = w if correction == "token_tis" else sequence_ratio(b.policy - b.behaviour, b.mask)
    w = jnp.where(w > 3.0, 0.0, w) if correction == "sequence_mis" else jnp.minimum(w, 2.0)
    return token_mean(-w * b.a * logprobs, b.mask)

  batch = make_batch(6)
  prove(make("reinforce"), published, batch, correction=correction, aggregation="token-mean")
  assert make("reinforce").aggregation == "seq-mean-token-sum"


def folded(weight_of, power=0.0):
  """The released `compute_policy_loss_vespo`: log weights are added to log W, which is bounded."""

  def published(logprobs, b):
    log_r = np.clip(np.asarray(b.policy - b.proximal), -20, 20)
    mismatch = np.asarray(b.proximal - b.behaviour)
    kernel = np.zeros((len(b.mask), 1))
    for i, row in enumerate(b.mask):
      log_w = log_r[i][row].sum() + sum(
        min(max(math.log(max(w, 1e-8)), -20), 20) for w in weight_of(mismatch[i][row])
      )
      log_w = min(max(log_w / max(row.sum(), 1) ** power, -20), 20)
      k, lam = (2.0, 3.0) if b.a[i, 0] >= 0 else (3.0, 2.0)
      kernel[i] = math.exp(lam + k * log_w - lam * math.exp(log_w))
    kernels.append(kernel)
    return token_mean(-kernel.astype(b.policy.dtype) * b.a * logprobs, b.mask)

  kernels = published.kernels = []
  return published


@pytest.mark.parametrize(
  "correction,weight_of",
  [
    ("token_tis", lambda logs: [min(math.exp(x), 2.0) for x in logs]),
    ("icepop", lambda logs: [math.exp(x) if 0.5 <= math.exp(x) <= 5.0 else 0.0 for x in logs]),
    ("sequence_tis", lambda logs: [min(math.exp(sum(logs)), 2.0)]),  # once, not once per token
    ("sequence_mis", lambda logs: [math.exp(sum(logs)) if math.exp(sum(logs)) <= 3.0 else 0.0]),
    ("none", lambda logs: []),
  ],
)
def test_vespo_takes_the_correction_into_its_weight(correction, weight_of):
  batch = make_batch(7, spread=0.45, proximal=0.2)
  published = folded(weight_of)
  prove(make("vespo"), published, batch, correction=correction)
  if correction in ("icepop", "sequence_mis"):  # a masked token is a factor of 1e-8
    rows = published.kernels[-1][batch["mask"].any(1) & (batch["advantages"] != 0)]
    assert (rows < 1e-10).any() and (rows > 0.1).any()
  prove(make("vespo", length_norm="linear"), folded(weight_of, 1.0), batch, correction=correction)


def test_vespo_leaves_rejected_tokens_out_of_its_weight():
  batch = make_batch(8, spread=0.5, proximal=0.3)
  mismatch = batch["proximal_logprobs"] - batch["behaviour_logprobs"]
  kept = batch["mask"] & (mismatch**2 / 2 <= 0.1)
  assert 0 < kept.sum() < batch["mask"].sum()
  without = gradient(make("vespo"), {**batch, "mask": kept}, correction="token_tis")
  rejecting = corrections.make("custom", reject="token_k2:0.1")
  corrected = gradient(make("vespo"), batch, correction=rejecting)
  np.testing.assert_allclose(corrected, without, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", objectives.names())
def test_a_behaviour_policy_without_any_probability_is_finite_under_a_correction(name):
  batch = make_batch(9, proximal=0.3)
  batch["behaviour_logprobs"][::2, ::3] = -np.inf
  correction = "k3_rejection" if name == "minirl" else "token_tis"
  assert np.isfinite(gradient(make(name), batch, correction=correction)).all()


@pytest.mark.parametrize("name", objectives.names())
def test_counting_the_behaviour_policy_twice_is_refused(name):
  policy = {"policy_logprobs": jnp.zeros((1, 2)), "behaviour_logprobs": jnp.ones((1, 2))}
  plain = {**policy, "advantages": jnp.ones(1), "mask": jnp.ones((1, 2), bool)}
  decoupled = {**plain, "proximal_logprobs": jnp.ones((1, 2))}
  loss = lambda given, **options: objectives.policy_loss(make(name), **given, **options)
  traced = lambda given, rule: jax.eval_shape(functools.partial(loss, correction=rule), given)
  for correction in ("token_tis", "sequence_mis"):
    weigh = lambda given: traced(given, correction)  # noqa: B023
    if name == "minirl":  # its own weight is against the behaviour policy, whatever its mask is on
      for given in (plain, decoupled):
        with pytest.raises(ValueError, match="'minirl' corrects for the behaviour policy itself"):
          weigh(given)
      continue
    weigh(decoupled)
    if name == "reinforce":
      weigh(plain)
    else:
      with pytest.raises(ValueError, match=f"'{name}'.*'{correction}' would count it twice"):
        weigh(plain)
  for given in (plain, decoupled):  # without weights there is nothing to count
    for correction in ("none", "k3_rejection"):
      traced(given, correction)
