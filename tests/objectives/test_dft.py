"""DFT and cross entropy: published losses, and where following their gradients leads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.published import assert_finite_at_extremes, make_batch, prove, sg, token_mean
from vespo_jax import objectives

CROSS_ENTROPY, DFT = objectives.make("reinforce"), objectives.dft()


def demonstrations():
  return {**make_batch(), "advantages": np.ones(24)}


def test_dft_is_its_published_loss():
  """arXiv 2508.05629 eq. 9: -sg(pi) log pi of every token."""

  def published(logprobs, b):
    return token_mean(-sg(jnp.exp(logprobs)) * logprobs, b.mask)

  prove(DFT, published, demonstrations())


def test_reinforce_at_advantage_one_is_cross_entropy():
  def published(logprobs, b):
    return token_mean(-logprobs, b.mask)

  prove(CROSS_ENTROPY, published, demonstrations(), aggregation="token-mean")


def test_finite_at_extremes():
  assert_finite_at_extremes(DFT)


def test_it_takes_no_rollout_correction_and_needs_the_policy():
  with pytest.raises(ValueError, match="correction 'token_tis'"):
    objectives.check_correction(DFT, objectives.corrections.make("token_tis"), True)
  with pytest.raises(ValueError, match="needs extras\\['policy_logprobs'\\]"):
    DFT(jnp.zeros((1, 1)), jnp.ones(1), jnp.ones((1, 1), bool))


DATA = np.array([1, 5, 2, 0])  # how often each of four responses of one token is demonstrated


def loss_of_logits(objective):
  tokens = np.repeat(np.arange(4), DATA)

  def loss(logits):
    logprobs = jax.nn.log_softmax(logits)[tokens][:, None]
    ones = jnp.ones(logprobs.shape)
    given = dict(policy_logprobs=logprobs, behaviour_logprobs=0 * ones, advantages=ones[:, 0])
    return objectives.policy_loss(
      objective, **given, mask=ones > 0, aggregation="seq-mean-token-sum"
    )[0]

  return loss


def follow(objective, steps):
  """Gradient descent on the logits of a policy that may be any distribution."""
  gradient = jax.grad(loss_of_logits(objective))
  step = lambda i, logits: logits - 2.0 * gradient(logits)
  return np.asarray(jax.nn.softmax(jax.lax.fori_loop(0, steps, step, jnp.zeros(4))))


def test_the_fixed_point_of_cross_entropy_is_the_distribution_of_the_data():
  share = DATA / DATA.sum()
  at_data = jnp.where(share > 0, jnp.log(jnp.maximum(share, 1e-30)), -jnp.inf)
  at_data = jnp.maximum(at_data, -60.0)
  np.testing.assert_allclose(jax.grad(loss_of_logits(CROSS_ENTROPY))(at_data), 0.0, atol=1e-6)
  np.testing.assert_allclose(follow(CROSS_ENTROPY, 3000), share, atol=1e-3)


def test_dft_is_the_replicator_equation_and_ends_at_the_mode():
  """Its gradient on logit k is -pi_k (d_k - sum_j pi_j d_j): what is demonstrated more often than
  the policy's average response grows."""
  logits, share = jnp.asarray([0.3, -1.0, 0.5, 0.1]), DATA / DATA.sum()
  pi = jax.nn.softmax(logits)
  expected = -pi * (share - jnp.sum(pi * share))
  np.testing.assert_allclose(jax.grad(loss_of_logits(DFT))(logits), expected, atol=1e-6)
  np.testing.assert_allclose(follow(DFT, 3000), np.eye(4)[1], atol=2e-2)
