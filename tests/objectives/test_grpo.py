"""GRPO against the published clipped surrogate, differentiated automatically."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vespo_jax import objectives


def published(logprobs, behaviour, advantages, mask, low, high, dual_clip):
  r = jnp.exp(logprobs - behaviour)
  a = advantages[:, None]
  loss = -jnp.minimum(r * a, jnp.clip(r, 1 - low, 1 + high) * a)
  if dual_clip:
    loss = jnp.where(a < 0, jnp.minimum(loss, -a * dual_clip), loss)
  rows = jnp.sum(jnp.where(mask, loss, 0.0), axis=1) / jnp.sum(mask, axis=1)
  return jnp.mean(rows)


@pytest.mark.parametrize("low,high,dual_clip", [(0.2, 0.28, 0.0), (0.1, 0.1, 0.0), (0.2, 0.2, 2.0)])
def test_value_and_gradient(low, high, dual_clip):
  rng = np.random.default_rng(0)
  policy = jnp.asarray(rng.normal(-1.0, 0.2, (32, 9)), jnp.float32)
  behaviour = policy + jnp.asarray(rng.normal(0.0, 0.6, (32, 9)), jnp.float32)
  advantages = jnp.asarray(rng.normal(size=32), jnp.float32)
  mask = jnp.asarray(np.arange(9) < rng.integers(1, 10, (32, 1)))
  objective = objectives.make("grpo", clip_low=low, clip_high=high, dual_clip=dual_clip)

  def ours(logprobs):
    return objectives.policy_loss(
      objective,
      policy_logprobs=logprobs,
      behaviour_logprobs=behaviour,
      advantages=advantages,
      mask=mask,
    )

  (loss, metrics), grad = jax.value_and_grad(ours, has_aux=True)(policy)
  expected, expected_grad = jax.value_and_grad(published)(
    policy, behaviour, advantages, mask, low, high, dual_clip
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(grad, expected_grad, rtol=1e-5, atol=1e-9)
  clipped = np.asarray(mask & (expected_grad == 0))
  assert 0.1 < clipped.sum() / mask.sum() < 0.9  # the example exercises both sides
  np.testing.assert_allclose(metrics["objective/clip_fraction"], clipped.sum() / mask.sum())
