"""VESPO against the paper: its kernel table, its implicit surrogate, its bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import gammainc, gammaln

from vespo_jax import objectives
from vespo_jax.objectives.vespo import phi

TABLE = {  # W: phi at (k, lambda) = (2, 3) and (3, 2)
  0.01: (1.94919e-3, 7.24274e-6),
  0.1: (0.148797, 6.04965e-3),
  0.25: (0.592983, 0.0700264),
  0.5: (1.12042, 0.339785),
  0.8: (1.16616, 0.763814),
  1.0: (1.0, 1.0),
  1.25: (0.738073, 1.18463),
  1.5: (0.502043, 1.24159),
  2.0: (0.199148, 1.08268),
  3.0: (0.0223088, 0.494522),
  5.0: (1.53605e-4, 0.0419328),
  10.0: (1.87953e-10, 1.52300e-5),
}


def test_kernel_table():
  log_w = jnp.log(jnp.asarray(list(TABLE)))
  positive, negative = np.array(list(TABLE.values())).T
  np.testing.assert_allclose(phi(log_w, 2.0, 3.0), positive, rtol=2e-5)
  np.testing.assert_allclose(phi(log_w, 3.0, 2.0), negative, rtol=2e-5)


def test_kernel_is_one_on_policy_exactly():
  assert phi(jnp.float32(0.0), 2.0, 3.0) == 1.0
  assert phi(jnp.float32(0.0), 3.0, 2.0) == 1.0


def surrogate(w, k, lam):
  """f with phi(W) = W f'(W): e^lam lam^-k gamma_lower(k, lam W) (arXiv 2602.10693 eq. 40-41)."""
  return jnp.exp(lam - k * jnp.log(lam) + gammaln(k)) * gammainc(k, lam * w)


@pytest.mark.parametrize("seed", range(5))
def test_gradient_is_that_of_the_implicit_surrogate(seed):
  rng = np.random.default_rng(seed)
  policy = jnp.asarray(rng.normal(-1.0, 0.2, (8, 6)), jnp.float32)
  behaviour = policy + jnp.asarray(rng.normal(0.0, 0.3, (8, 6)), jnp.float32)
  advantages = jnp.asarray(rng.normal(size=8), jnp.float32)
  mask = jnp.asarray(np.arange(6) < rng.integers(1, 7, (8, 1)))

  def published(logprobs):
    w = jnp.exp(jnp.sum(jnp.where(mask, logprobs - behaviour, 0.0), axis=1))
    f = jnp.where(advantages >= 0, surrogate(w, 2.0, 3.0), surrogate(w, 3.0, 2.0))
    return -jnp.sum(f * advantages) / jnp.sum(mask)  # token-mean: the global token count

  def ours(logprobs):
    return objectives.policy_loss(
      objectives.make("vespo"),
      policy_logprobs=logprobs,
      behaviour_logprobs=behaviour,
      advantages=advantages,
      mask=mask,
    )[0]

  np.testing.assert_allclose(jax.grad(ours)(policy), jax.grad(published)(policy), rtol=2e-5)


def test_weight_is_the_product_over_the_whole_response():
  log_ratio = jnp.full((1, 4), 0.25)
  coefficients, _ = objectives.make("vespo")(log_ratio, jnp.ones(1), jnp.ones((1, 4), bool))
  np.testing.assert_allclose(coefficients, np.full((1, 4), phi(1.0, 2.0, 3.0)), rtol=1e-6)


def test_kernel_follows_the_sign_of_the_advantage():
  log_ratio = jnp.full((3, 1), np.log(2.0))
  objective = objectives.make("vespo")
  coefficients, _ = objective(log_ratio, jnp.asarray([1.0, 0.0, -1.0]), jnp.ones((3, 1), bool))
  np.testing.assert_allclose(coefficients[:, 0], [0.199148, 0.199148, 1.08268], rtol=2e-5)


def test_second_moment_bound():
  """E_mu[phi^2] <= Z K C (proposition 3.1) for log-normal weights with E_mu[W] = 1."""
  nodes, weights = np.polynomial.hermite_e.hermegauss(200)
  weights = weights / weights.sum()
  for (k, lam), bound_k in (((2.0, 3.0), np.exp(2) / 3), ((3.0, 2.0), 1.0)):
    for s in (0.1, 0.5, 1.0, 2.0, 3.0):
      log_w = s * nodes - s * s / 2
      kernel = np.asarray(phi(jnp.asarray(log_w), k, lam), np.float64)
      z, second = weights @ kernel, weights @ kernel**2
      c = weights @ (kernel * np.exp(log_w)) / z
      assert second <= z * bound_k * c * (1 + 1e-4)
