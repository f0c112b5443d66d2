import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vespo_jax import diagnostics


def test_effective_sample_size():
  every = jnp.ones(4, bool)
  np.testing.assert_allclose(diagnostics.ess_fraction(jnp.zeros(4), every), 1.0, rtol=1e-6)
  # weights 1, 3: (1 + 3)^2 / (2 (1 + 9)) = 0.8; the two invalid ones do not count
  log_w = jnp.log(jnp.asarray([1.0, 3.0, 100.0, 7.0]))
  valid = jnp.asarray([True, True, False, False])
  np.testing.assert_allclose(diagnostics.ess_fraction(log_w, valid), 0.8, rtol=1e-6)
  huge = jnp.asarray([1e4, -1e4, 0.0, 0.0])
  np.testing.assert_allclose(diagnostics.ess_fraction(huge, every), 0.25, rtol=1e-6)
  assert diagnostics.ess_fraction(log_w, jnp.zeros(4, bool)) == 0.0
  of_two = jnp.asarray([0.0, 0.0, -jnp.inf, -jnp.inf])  # two weights of 0
  np.testing.assert_allclose(diagnostics.ess_fraction(of_two, every), 0.5, rtol=1e-6)
  assert diagnostics.ess_fraction(of_two, ~valid) == 0.0


def test_off_policy_metrics_by_hand():
  log_ratio = jnp.asarray([[0.1, 0.3], [-0.2, jnp.nan], [9.0, 9.0]])
  mask = jnp.asarray([[True, True], [True, False], [False, False]])
  coefficients = jnp.asarray([[2.0, 2.0], [1.0, 0.0], [0.0, 0.0]])
  metrics = diagnostics.off_policy_metrics(
    log_ratio, coefficients, jnp.asarray([1.0, -1.0, 1.0]), mask
  )
  expected = {
    "weight/log_w_mean": 0.1,  # log W = 0.4 and -0.2
    "weight/log_w_std": 0.3,
    "weight/log_w_min": -0.2,
    "weight/log_w_max": 0.4,
    "objective/coefficient_mean": 5 / 3,
    "objective/coefficient_mean_pos": 2.0,
    "objective/coefficient_mean_neg": 1.0,
    "weight/log_z": np.log(1.5),  # phi = 2 and 1
    "weight/q_mean_w": (2 * np.exp(0.4) + np.exp(-0.2)) / 3,
    "objective/ess_fraction": 0.9,  # (2 + 1)^2 / (2 (4 + 1))
    "ratio/outside_0.8_1.25": 1 / 3,  # log 1.25 = 0.223: 0.3 is out, 0.1 and -0.2 are in
    "ratio/outside_0.5_2": 0.0,
  }
  for key, value in expected.items():
    np.testing.assert_allclose(metrics[key], value, rtol=1e-5, err_msg=key)


def test_w_is_of_the_tokens_that_were_kept():
  log_ratio, mask = jnp.asarray([[0.1, 0.5], [0.2, 0.3]]), jnp.ones((2, 2), bool)
  kept = jnp.asarray([[True, False], [True, True]])
  metrics = diagnostics.off_policy_metrics(
    log_ratio, jnp.ones((2, 2)), jnp.ones(2), mask, kept_BT=kept
  )
  np.testing.assert_allclose(metrics["weight/log_w_max"], 0.5, rtol=1e-6)
  np.testing.assert_allclose(metrics["weight/log_w_min"], 0.1, rtol=1e-6)
  np.testing.assert_allclose(metrics["ratio/outside_0.8_1.25"], 0.5)  # of all tokens


def test_a_sequence_that_was_rejected_whole_has_no_w_and_weighs_nothing():
  log_ratio, mask = jnp.asarray([[0.1, 0.5], [0.2, 0.3], [3.0, 2.0]]), jnp.ones((3, 2), bool)
  kept = mask.at[2].set(False)
  of = lambda kept: diagnostics.off_policy_metrics(
    log_ratio, jnp.where(kept, 1.0, 0.0), jnp.ones(3), mask, kept_BT=kept
  )
  metrics = of(kept)
  np.testing.assert_allclose(metrics["weight/log_w_mean"], 0.55, rtol=1e-6)
  np.testing.assert_allclose(metrics["weight/log_w_min"], 0.5, rtol=1e-6)
  np.testing.assert_allclose(metrics["weight/log_w_std"], 0.05, rtol=1e-5)
  w = np.exp([0.6, 0.5])
  np.testing.assert_allclose(
    metrics["weight/ess_fraction"], w.sum() ** 2 / (w**2).sum() / 3, rtol=1e-6
  )
  none = of(jnp.zeros_like(mask))
  assert all(none[f"weight/{name}"] == 0 for name in ("log_w_mean", "log_w_min", "ess_fraction"))


def test_coefficients_that_are_all_0_have_no_effective_sample():
  ones = jnp.ones((3, 2))
  metrics = diagnostics.off_policy_metrics(ones, 0 * ones, ones[:, 0], ones > 0)
  assert metrics["objective/ess_fraction"] == metrics["weight/q_mean_w"] == 0.0
  assert metrics["weight/log_z"] < -80
  some = ones.at[:2].set(0.0)
  metrics = diagnostics.off_policy_metrics(ones, some, ones[:, 0], ones > 0)
  np.testing.assert_allclose(metrics["objective/ess_fraction"], 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("tokens", [1, 19, 20, 21, 100, 640])
def test_mismatch_against_numpy(tokens):
  rng = np.random.default_rng(tokens)
  log_ratio = rng.normal(0, 0.4, (20, 32)).astype(np.float32)
  mask = rng.permutation(640).reshape(20, 32) < tokens
  log_ratio[~mask] = np.where(rng.random(640 - tokens) < 0.5, np.nan, 99.0)
  seen = np.abs(log_ratio[mask])
  ratio = np.exp(log_ratio[mask])
  expected = {
    "mismatch/tokens": tokens,
    "mismatch/abs_log_ratio_mean": seen.mean(),
    "mismatch/abs_log_ratio_p95": np.quantile(seen, 0.95, method="inverted_cdf"),
    "mismatch/abs_log_ratio_max": seen.max(),
    "mismatch/outside_0.8_1.25": np.mean((ratio < 0.8) | (ratio > 1.25)),
    "mismatch/outside_0.5_2": np.mean((ratio < 0.5) | (ratio > 2)),
  }
  metrics = jax.jit(diagnostics.mismatch_metrics)(log_ratio, mask)
  assert metrics.keys() == expected.keys()
  for key, value in expected.items():
    np.testing.assert_allclose(metrics[key], value, rtol=1e-5, err_msg=key)


def test_mismatch_of_no_token_at_all_is_zero():
  metrics = diagnostics.mismatch_metrics(jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3), bool))
  assert set(map(float, metrics.values())) == {0.0}


def test_the_three_conventions_of_staleness_by_hand():
  versions = [np.array(v, np.int32) for v in ([4, 4], [4, 5, 6], [6], [], [2, 6])]
  metrics = diagnostics.staleness_metrics(versions, version=8, published=6)
  assert metrics == {
    "staleness/minibatch_index": 2.0,
    "staleness/mean": (4 + 4 + 4 + 3 + 2 + 2 + 6 + 2) / 8,
    "staleness/max": 6.0,
    "staleness/stale_fraction": 0.25,  # only the first ended under weights older than published
  }
  nothing = diagnostics.staleness_metrics([np.zeros(0, np.int32)], version=3, published=3)
  assert set(nothing.values()) == {0.0}


def test_kls_by_hand():
  sampled, other = jnp.asarray([[-1.0, -2.0, 5.0]]), jnp.asarray([[-1.1, -1.5, jnp.nan]])
  mask = jnp.asarray([[True, True, False]])
  x = np.array([-0.1, 0.5])  # log other - log sampled
  expected = {"kl/a": np.exp(x) - 1 - x, "kl/a_k1": -x, "kl/a_k2": x**2 / 2}
  metrics = diagnostics.kl_metrics("a", sampled, other, mask)
  assert metrics.keys() == expected.keys()
  for key, value in expected.items():
    np.testing.assert_allclose(metrics[key], value.mean(), rtol=1e-5, err_msg=key)


def test_histogram_counts_everything_once():
  log_w = np.array([-1e4, -20.0, -0.01, 0.0, 0.0, 0.01, 20.0, 1e4])
  counts = diagnostics.log_w_histogram(log_w)
  edges = diagnostics.HISTOGRAM_EDGES
  assert len(counts) == len(edges) + 1 and sum(counts) == 8
  assert counts[0] == 1 and counts[-1] == 2  # below -20; from 20 on
  assert counts[1] == 1 and counts[edges.index(0)] == 1 and counts[edges.index(0) + 1] == 3


def test_gradient_shares_by_hand():
  shares = diagnostics.gradient_shares(
    gradient=np.array([1.0, 2.0, 3.0, 4.0]),
    advantages=np.array([1.0, -1.0, 1.0, -1.0]),
    lengths=np.array([1, 4, 5, 16]),
    lags=np.array([0.0, 1.0, 3.5, 100.0]),
    max_length=16,
  )
  expected = {
    "positive": 0.4,
    "length_q1": 0.3,
    "length_q2": 0.3,
    "length_q4": 0.4,
    "staleness_0": 0.1,
    "staleness_1": 0.2,
    "staleness_2": 0.3,
    "staleness_32": 0.4,
  }
  for key, value in shares.items():
    assert np.isclose(value, expected.get(key.removeprefix("gradient_share/"), 0.0)), key
