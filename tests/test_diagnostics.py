import jax.numpy as jnp
import numpy as np

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
