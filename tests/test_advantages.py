import jax.numpy as jnp
import numpy as np
import pytest

from vespo_jax import advantages

ALL = jnp.ones((1, 4), bool)


def test_grpo_by_hand():
  # rewards 1 0 0 0: mean 1/4, std (ddof 1) = sqrt(((3/4)^2 + 3 (1/4)^2) / 3) = 1/2
  values, flags = advantages.make("grpo")(jnp.asarray([[1.0, 0, 0, 0]]), ALL)
  np.testing.assert_allclose(values, [[1.5, -0.5, -0.5, -0.5]], rtol=1e-5)
  assert not flags[0]


def test_without_std_it_is_reward_minus_mean():
  values, _ = advantages.make("grpo", normalize_std=False)(jnp.asarray([[1.0, 0, 0, 0]]), ALL)
  np.testing.assert_allclose(values, [[0.75, -0.25, -0.25, -0.25]], rtol=1e-6)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3])
def test_a_group_without_variance_is_flagged_and_is_exactly_zero(reward):
  values, flags = advantages.make("grpo")(jnp.full((1, 7), reward), jnp.ones((1, 7), bool))
  assert flags[0]
  assert not np.asarray(values).any()


def test_invalid_samples_are_left_out():
  rewards = jnp.asarray([[1.0, 0.0, 99.0, jnp.nan]])
  valid = jnp.asarray([[True, True, False, False]])
  values, flags = advantages.make("grpo")(rewards, valid)
  pair, _ = advantages.make("grpo")(rewards[:, :2], valid[:, :2])
  np.testing.assert_allclose(values, jnp.pad(pair, [(0, 0), (0, 2)]), rtol=1e-6)
  assert not flags[0]


def test_a_single_sample_keeps_its_reward():
  values, flags = advantages.make("grpo")(jnp.asarray([[0.7]]), jnp.ones((1, 1), bool))
  np.testing.assert_allclose(values, [[0.7]], rtol=1e-5)
  assert not flags[0]


def test_unknown_name():
  with pytest.raises(ValueError, match="unknown advantage 'gae'.*grpo"):
    advantages.make("gae")
