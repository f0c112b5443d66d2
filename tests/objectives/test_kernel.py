"""VESPO's kernel family against arXiv 2602.10693: its bounds, its surrogate, its second moment."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vespo_jax import objectives
from vespo_jax.objectives.kernel import phi, ratio_bound, supremum, surrogate

DEPLOYED = ((2.0, 3.0), (3.0, 2.0))
SHAPES = [(2.0, 3.0), (3.0, 2.0), (1.0, 1.0), (1.0, 3.0), (0.5, 2.0), (0.2, 0.1), (4.0, 0.5)]
shapes = st.tuples(st.floats(0.0, 8.0, allow_subnormal=False), st.floats(0.01, 8.0))
log_weights = st.floats(-20.0, 20.0)


@pytest.mark.parametrize("k,lam,expected", [(2.0, 3.0, math.e**2 / 3), (3.0, 2.0, 1.0)])
def test_ratio_bound_table(k, lam, expected):
  """K = sup phi / W, at W = (k - 1) / lambda."""
  w = (k - 1) / lam
  assert w == {2.0: 1 / 3, 3.0: 1.0}[k]
  np.testing.assert_allclose(ratio_bound(k, lam), expected, rtol=1e-12)
  np.testing.assert_allclose(phi(jnp.log(w), k, lam) / w, expected, rtol=1e-6)
  for other in (0.9 * w, 1.1 * w):
    assert phi(jnp.log(other), k, lam) / other < expected * (1 - 1e-3)
  assert abs(ratio_bound(2.0, 3.0) - 2.463019) < 1e-6


@pytest.mark.parametrize("k,lam,expected", [(2.0, 3.0, 1.208125), (3.0, 2.0, 1.241593)])
def test_supremum_table(k, lam, expected):
  """phi_max = (k / lambda)^k exp(lambda - k), at W = k / lambda: below and above on-policy."""
  w = k / lam
  np.testing.assert_allclose(supremum(k, lam), w**k * math.exp(lam - k), rtol=1e-12)
  np.testing.assert_allclose(supremum(k, lam), expected, rtol=1e-6)
  np.testing.assert_allclose(phi(jnp.log(w), k, lam), expected, rtol=1e-6)
  for other in (0.9 * w, 1.1 * w):
    assert phi(jnp.log(other), k, lam) < expected * (1 - 1e-3)


def test_bounds_at_the_edges_of_the_family():
  assert ratio_bound(1.0, 1.5) == pytest.approx(math.exp(1.5))  # K = e^lambda, at W = 0
  assert ratio_bound(0.999, 2.0) == math.inf
  assert ratio_bound(1.0, 0.0) == 1.0  # the ratio itself
  assert ratio_bound(2.0, 0.0) == math.inf and supremum(2.0, 0.0) == math.inf
  assert supremum(0.0, 0.0) == 1.0  # REINFORCE
  assert supremum(0.0, 2.0) == pytest.approx(math.exp(2.0))


def test_the_family_holds_reinforce_and_importance_sampling():
  log_w = jnp.linspace(-20.0, 20.0, 41)
  np.testing.assert_array_equal(phi(log_w, 0.0, 0.0), np.ones(41))
  np.testing.assert_allclose(phi(log_w, 1.0, 0.0), np.exp(log_w), rtol=1e-6)
  np.testing.assert_allclose(phi(log_w, 0.5, 0.0), np.exp(0.5 * np.asarray(log_w)), rtol=1e-6)
  np.testing.assert_allclose(phi(log_w, 2.0, 1e-9), phi(log_w, 2.0, 0.0), rtol=0.5)


@pytest.mark.parametrize("k,lam", DEPLOYED)
def test_slope_on_policy(k, lam):
  """d log phi / d log W = k - lambda W: -1 of the positive kernel and +1 of the negative one."""
  for log_w in (0.0, -1.0, 0.7):
    slope = jax.grad(lambda x: jnp.log(phi(x, k, lam)))(log_w)
    np.testing.assert_allclose(slope, k - lam * math.exp(log_w), rtol=1e-5)


@pytest.mark.parametrize(
  "k,lam", [*SHAPES, (0.0, 0.0), (0.0, 1.5), (1.0, 0.0), (2.0, 0.0), (0.5, 0.0), (-1.0, 0.0)]
)
def test_phi_is_the_slope_of_the_surrogate(k, lam):
  """phi(W) = W f'(W), that is d f / d log W."""
  for wide, tolerance in ((False, 1e-5), (True, 1e-12)):
    with jax.enable_x64(wide):
      log_w = jnp.linspace(-6.0, 2.5, 35)
      slope = jax.vmap(jax.grad(lambda x: surrogate(x, k, lam)))(log_w)
      np.testing.assert_allclose(slope, phi(log_w, k, lam), rtol=tolerance)


@pytest.mark.parametrize("k,lam", SHAPES)
def test_the_surrogate_is_the_integral_of_phi_over_log_w(k, lam):
  """From W = 0; it grows, and saturates at e^lambda lambda^-k Gamma(k) (eq. 40-41)."""
  nodes, weights = np.polynomial.legendre.leggauss(200)
  with jax.enable_x64(True):
    for log_w in (-3.0, 0.0, 0.5, 2.0):
      start = log_w - 18.0 / min(k, 1.0)
      u = start + (nodes + 1) / 2 * (log_w - start)
      kernel = np.exp(k * u + lam * (1 - np.exp(u)))  # written out: phi holds log W to +-20
      integral = (log_w - start) / 2 * weights @ kernel
      tail = math.exp(lam + k * start) / k
      np.testing.assert_allclose(surrogate(jnp.asarray(log_w), k, lam), integral + tail, rtol=1e-6)
    values = np.asarray(surrogate(jnp.linspace(-9.0, 9.0, 50), k, lam))
    assert (np.diff(values) >= 0).all()
    np.testing.assert_allclose(values[-1], math.exp(lam) * lam**-k * math.gamma(k), rtol=1e-9)


TABLE = {  # s: Z, E_Q W, E phi^2 and its bound, at (2, 3) and (3, 2), for log W ~ N(-s^2 / 2, s^2)
  0.1: ((0.9951, 0.9902, 0.9997, 2.427), (0.9901, 1.0098, 0.9897, 0.9997)),
  0.5: ((0.9021, 0.8377, 0.9187, 1.861), (0.7943, 1.1421, 0.7490, 0.9072)),
  1.0: ((0.7045, 0.6821, 0.6595, 1.184), (0.5045, 1.2224, 0.4384, 0.6167)),
  2.0: ((0.3389, 0.5691, 0.2796, 0.4750), (0.1985, 1.2461, 0.1638, 0.2473)),
  3.0: ((0.1337, 0.5347, 0.1049, 0.1761), (0.0730, 1.2489, 0.0594, 0.0912)),
}


@pytest.mark.parametrize("s", TABLE)
def test_second_moment_table(s):
  """Proposition 3.1, E_mu[phi^2] <= Z K E_Q[W], by quadrature; in the limit of W^2, exp(s^2)."""
  x, step = np.linspace(-12.0, 12.0, 4001, retstep=True)
  density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * step
  with jax.enable_x64(True):
    log_w = jnp.asarray(s * x - s * s / 2)
    np.testing.assert_allclose(density @ np.exp(log_w), 1.0, rtol=1e-6)
    for (k, lam), expected in zip(DEPLOYED, TABLE[s], strict=True):
      kernel = np.asarray(phi(log_w, k, lam))
      z, second = density @ kernel, density @ kernel**2
      c = density @ (kernel * np.exp(log_w)) / z
      bound = z * ratio_bound(k, lam) * c
      np.testing.assert_allclose((z, c, second, bound), expected, rtol=5e-4, atol=5e-5)
      assert second <= bound and second <= supremum(k, lam) * z


@settings(deadline=None)
@given(log_weights, shapes)
def test_phi_is_within_its_supremum(log_w, shape):
  assert phi(jnp.float32(log_w), *shape) <= supremum(*shape) * (1 + 1e-4)


@settings(deadline=None)
@given(log_weights, st.tuples(st.floats(1.0, 8.0), st.floats(0.01, 8.0)))
def test_phi_is_within_its_multiple_of_the_ratio(log_w, shape):
  assert phi(jnp.float32(log_w), *shape) <= ratio_bound(*shape) * math.exp(log_w) * (1 + 1e-4)


@settings(deadline=None)
@given(
  st.floats(-1e4, 1e4) | st.sampled_from([-math.inf, math.inf, -1e38, 1e38]),
  st.floats(-50.0, 50.0),
  st.floats(0.0, 1e6),
)
def test_phi_is_finite_and_not_negative(log_w, k, lam):
  value = phi(jnp.float32(log_w), k, lam)
  assert jnp.isfinite(value) and value >= 0
  held = phi(jnp.clip(jnp.float32(log_w), -20.0, 20.0), k, lam)
  assert value == held  # +-20 nats, as in the released code


rows = st.lists(
  st.tuples(st.floats(-12.0, 12.0), st.sampled_from([-1.5, 0.0, 1.0]), st.integers(0, 4)),
  min_size=1,
  max_size=6,
)


@settings(deadline=None)
@given(rows, st.floats(1.0, 5.0), st.floats(0.1, 5.0), st.floats(1.0, 5.0), st.floats(0.1, 5.0))
def test_the_sample_bound_of_the_second_moment(rows, k_pos, lambda_pos, k_neg, lambda_neg):
  """VESPO's metrics: mean phi^2 and K mean phi W over the sequences of a sign, for any sample."""
  rows = rows + [(0.0, 0.0, 0)] * (6 - len(rows))
  log_w, advantages, lengths = (np.asarray(x, np.float32) for x in zip(*rows, strict=True))
  mask = np.arange(4) < lengths[:, None]
  log_ratio = np.where(mask, (log_w / np.maximum(lengths, 1))[:, None], 0.0)
  objective = objectives.make(
    "vespo", k_pos=k_pos, lambda_pos=lambda_pos, k_neg=k_neg, lambda_neg=lambda_neg
  )
  given = (jnp.asarray(log_ratio, jnp.float32), jnp.asarray(advantages), jnp.asarray(mask))
  _, metrics = objective(*given)
  signs = {"pos": (advantages >= 0, k_pos, lambda_pos), "neg": (advantages < 0, k_neg, lambda_neg)}
  for sign, (where, k, lam) in signs.items():
    w = np.exp(log_w[where & (lengths > 0)].astype(float))
    kernel = w**k * np.exp(lam * (1 - w))
    second, bound = (metrics[f"weight/second_moment{b}_{sign}"] for b in ("", "_bound"))
    assert second <= bound * (1 + 1e-4)
    wanted = np.mean(kernel**2) if w.size else 0.0
    np.testing.assert_allclose(second, wanted, rtol=1e-3, atol=1e-30)
    wanted = ratio_bound(k, lam) * np.mean(kernel * w) if w.size else 0.0
    np.testing.assert_allclose(bound, wanted, rtol=1e-3, atol=1e-30)


@pytest.mark.parametrize(
  "log_w",
  [0.0, -5.0, 15.0],
)
def test_without_a_bound_the_sample_bound_is_infinite(log_w):
  """K is infinite for k < 1, however small phi is."""
  objective = objectives.make("vespo", k_pos=0.5)
  _, metrics = objective(jnp.full((1, 1), log_w), jnp.ones(1), jnp.ones((1, 1), bool))
  assert metrics["weight/second_moment_bound_pos"] == math.inf
