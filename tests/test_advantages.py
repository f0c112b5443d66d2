"""Advantage estimators by hand and against numpy, group by group."""

import jax.numpy as jnp
import numpy as np
import pytest

from vespo_jax import advantages

ALL = jnp.ones((1, 4), bool)
ONE_RIGHT = jnp.asarray([[1.0, 0, 0, 0]])
EVERY = pytest.mark.parametrize("name", advantages.names())


def example(seed=0, groups=5, samples=6):
  rng = np.random.default_rng(seed)
  rewards = rng.choice([0.0, 0.5, 1.0], (groups, samples)).astype(np.float32)
  valid = rng.random((groups, samples)) < 0.8
  valid[0] = [True] + [False] * (samples - 1)  # a group of one
  extras = {
    "lengths": rng.integers(1, 9, rewards.shape).astype(np.float32),
    "log_w": rng.normal(0, 1, rewards.shape).astype(np.float32),
    "log_score": rng.normal(0, 1, rewards.shape).astype(np.float32),
  }
  return rewards, valid, extras


def call(name, rewards, valid, extras=None, **options):
  extras = {key: jnp.asarray(x) for key, x in (extras or {}).items()}
  values, flags = advantages.make(name, **options)(jnp.asarray(rewards), jnp.asarray(valid), extras)
  return np.asarray(values), np.asarray(flags)


def by_group(function, **options):
  """The estimator applied to the valid samples of each group on its own, in float64."""

  def apply(rewards, valid, extras):
    out = np.zeros(rewards.shape)
    for p, keep in enumerate(valid):
      r = rewards[p, keep].astype(np.float64)
      if len(r) > 1 and (r == r[0]).all():
        continue
      out[p, keep] = function(r, {k: x[p, keep].astype(np.float64) for k, x in extras.items()})
    return out

  return apply, options


def opo(r, extras):
  return r - (np.average(r, weights=extras["lengths"]) if len(r) > 1 else 0)


def pass_at_k(r, extras):
  out = np.zeros(len(r))
  if len(r) > 1:
    second, first = np.sort(r)[-2:]
    out[np.argmax(r)] = (first - second) / (r.std(ddof=1) + 1e-6)
  return out


def vcpo(r, extras, double=False):
  w = np.exp(extras["log_w"])
  weight = w**2 * np.exp(2 * extras["log_score"]) * (np.minimum(w, 1.5) ** 2 if double else 1)
  return r - ((weight * r).sum() / weight.sum() if len(r) > 1 else 0)


PER_GROUP = {
  "grpo": by_group(lambda r, _: (r - r.mean()) / (r.std(ddof=1) + 1e-6) if len(r) > 1 else r),
  "dr_grpo": by_group(lambda r, _: r - r.mean() if len(r) > 1 else r),
  "rloo": by_group(
    lambda r, _: [r[i] - np.delete(r, i).mean() if len(r) > 1 else r[i] for i in range(len(r))]
  ),
  "opo": by_group(opo),
  "pass_at_k": by_group(pass_at_k),
  "vcpo": by_group(
    lambda r, extras: vcpo(r, extras) / (r.std() if len(r) > 1 else 1),
  ),
  "vcpo-double": by_group(
    lambda r, extras: vcpo(r, extras, True), normalize_std=False, double_weight=True, cap=1.5
  ),
}


@pytest.mark.parametrize("name", PER_GROUP)
@pytest.mark.parametrize("seed", range(3))
def test_group_estimators_see_the_valid_samples_of_their_group_alone(name, seed):
  function, options = PER_GROUP[name]
  rewards, valid, extras = example(seed)
  values, _ = call(name.split("-")[0], rewards, valid, extras, **options)
  np.testing.assert_allclose(values, function(rewards, valid, extras), rtol=1e-4, atol=1e-5)


def test_grpo_by_hand():
  # rewards 1 0 0 0: mean 1/4, std (ddof 1) = sqrt(((3/4)^2 + 3 (1/4)^2) / 3) = 1/2
  values, flags = call("grpo", ONE_RIGHT, ALL)
  np.testing.assert_allclose(values, [[1.5, -0.5, -0.5, -0.5]], rtol=1e-5)
  assert not flags[0]


def test_without_std_it_is_reward_minus_mean():
  for values, _ in (
    call("grpo", ONE_RIGHT, ALL, normalize_std=False),
    call("dr_grpo", ONE_RIGHT, ALL),
  ):
    np.testing.assert_allclose(values, [[0.75, -0.25, -0.25, -0.25]], rtol=1e-6)


def test_a_constant_baseline_leaves_groups_without_variance_their_gradient():
  rewards = jnp.asarray([[1.0, 0, 1.0, 0], [1.0, 1.0, 1.0, 1.0], [0.0, 0, 0, 0]])
  valid = jnp.asarray([[True, True, False, True], [True] * 4, [True] * 4])
  values, flags = call("constant", rewards, valid)
  np.testing.assert_array_equal(values, [[1, -1, 0, -1], [1] * 4, [-1] * 4])
  assert flags.tolist() == [False, True, True]
  values, _ = call("constant", rewards, valid, baseline=0.25, scale=1.0)
  np.testing.assert_array_equal(values[0], [0.75, -0.25, 0, -0.25])


def test_rloo_by_hand():
  values, _ = call("rloo", ONE_RIGHT, ALL)
  np.testing.assert_allclose(values, [[1.0, -1 / 3, -1 / 3, -1 / 3]], rtol=1e-6)


def test_pass_at_k_by_hand():
  values, _ = call("pass_at_k", [[0.2, 0.9, 0.5, 0.0]], ALL, normalize_std=False)
  np.testing.assert_allclose(values, [[0, 0.4, 0, 0]], rtol=1e-6)
  tied, flags = call("pass_at_k", [[1.0, 1.0, 0.0, 0.0]], ALL)
  assert not tied.any() and not flags[0]  # a second right answer adds nothing to pass@k


def test_gpg_by_hand():
  # 5 of 8 samples have a reward of 0, so alpha = 8 / 3
  rewards = jnp.asarray([[1.0, 0, 0, 0], [1.0, 1.0, 0, 0]])
  values, _ = call("gpg", rewards, jnp.ones((2, 4), bool))
  expected = np.array([[0.75, -0.25, -0.25, -0.25], [0.5, 0.5, -0.5, -0.5]]) * 8 / 3
  np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["reinforce_plus_plus", "reinforce_plus_plus_baseline"])
def test_whitening_is_over_the_tokens_of_the_batch(name):
  rewards, valid, extras = example(1)
  values, flags = call(name, rewards, valid, extras)
  raw = rewards.astype(np.float64)
  if name.endswith("baseline"):
    for p, keep in enumerate(valid):
      raw[p] -= raw[p, keep].mean() if keep.sum() > 1 else 0
  tokens = np.repeat(raw[valid], extras["lengths"][valid].astype(int))
  expected = np.where(valid, (raw - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8), 0)
  if name.endswith("baseline"):
    expected[flags] = 0
  np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)


def test_vcpo_baseline_minimises_the_second_moment():
  """No other scalar gives sum W^2 |score|^2 (R - b)^2 a smaller value."""
  rewards, valid, extras = example(2)
  values, flags = call("vcpo", rewards, valid, extras, normalize_std=False)
  weight = np.where(valid, np.exp(2 * (extras["log_w"] + extras["log_score"])), 0)
  for p in np.flatnonzero(~flags & (valid.sum(axis=1) > 1)):
    moment = lambda shift: (weight[p] * (values[p] + shift) ** 2).sum()  # noqa: B023
    assert moment(0) <= min(moment(-0.01), moment(0.01))


@EVERY
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3])
def test_a_group_without_variance_is_flagged_and_is_exactly_zero(name, reward):
  rewards, _, extras = example(groups=2, samples=7)
  rewards[0], rewards[1, 0] = reward, 2.0  # pass@k wants one best sample
  values, flags = call(name, rewards, np.ones((2, 7), bool), extras)
  assert flags.tolist() == [True, False]
  assert values[0].any() != advantages.make(name).group_relative
  assert values[1].any()


@EVERY
def test_invalid_samples_are_left_out(name):
  rewards, valid, extras = example(4)
  clean, flags = call(name, rewards, valid, extras)
  dirty = np.where(valid, rewards, np.nan)
  extras = {key: np.where(valid, x, np.nan) for key, x in extras.items()}
  values, other = call(name, dirty, valid, extras)
  np.testing.assert_array_equal(values, clean)
  np.testing.assert_array_equal(other, flags)
  assert not values[~valid].any()


@EVERY
def test_the_order_of_a_group_does_not_matter(name):
  rewards, valid, extras = example(5)
  rewards += 0.01 * np.arange(6, dtype=np.float32)  # no ties: pass@k gives the first its lead
  order = np.random.default_rng(0).permutation(6)
  values, _ = call(name, rewards, valid, extras)
  shuffled = {key: x[:, order] for key, x in extras.items()}
  other, _ = call(name, rewards[:, order], valid[:, order], shuffled)
  np.testing.assert_allclose(other, values[:, order], rtol=1e-4, atol=1e-6)


@EVERY
def test_a_batch_with_nothing_valid_is_zero(name):
  rewards, valid, extras = example()
  values, flags = call(name, rewards, np.zeros_like(valid), extras)
  assert not values.any() and not flags.any()


def test_extreme_weights_are_finite():
  rewards, valid, extras = example(6)
  extras |= {"log_w": 1e4 * extras["log_w"], "log_score": 30 * extras["log_score"]}
  for double_weight in (False, True):
    values, _ = call("vcpo", rewards, valid, extras, double_weight=double_weight)
    assert np.isfinite(values).all()


def test_a_single_sample_keeps_its_reward():
  for name in ("grpo", "dr_grpo", "rloo", "opo"):
    values, flags = call(name, [[0.7]], np.ones((1, 1), bool), {"lengths": np.ones((1, 1))})
    np.testing.assert_allclose(values, [[0.7]], rtol=1e-5)
    assert not flags[0]


def test_refusals():
  with pytest.raises(ValueError, match="unknown advantage 'gae'.*grpo"):
    advantages.make("gae")
  with pytest.raises(ValueError, match="score='norm' must be one of exact, logit"):
    advantages.make("vcpo", score="norm")
  with pytest.raises(ValueError, match=r"advantage 'opo' needs extras\['lengths'\]"):
    advantages.make("opo")(ONE_RIGHT, ALL)
