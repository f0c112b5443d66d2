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
    "kl/behaviour_policy": np.mean([np.expm1(x) - x for x in (0.1, 0.3, -0.2)]),
  }
  for key, value in expected.items():
    np.testing.assert_allclose(metrics[key], value, rtol=1e-5, err_msg=key)
