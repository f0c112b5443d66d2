"""Off-policy sequence masking against its publication, alone and with other methods."""

import jax.numpy as jnp
import numpy as np
import pytest
from published import (
  assert_all_hit,
  assert_finite_at_extremes,
  assert_same_gradient,
  coefficients_of,
  gradient,
  make_batch,
  parts,
  ppo,
  prove,
  seq_mean_token_mean,
  sg,
)

from vespo_jax.objectives import make, mask_off_policy


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


@pytest.mark.parametrize("name", ["opsm"])
def test_finite_at_extremes(name):
  assert_finite_at_extremes(make(name))
