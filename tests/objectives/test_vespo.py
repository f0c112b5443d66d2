"""VESPO against the paper: its kernel table, its published loss, its implicit surrogate."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import gammainc, gammaln
from published import (
  DOUBLE,
  SINGLE,
  assert_all_hit,
  assert_finite_at_extremes,
  assert_same_gradient,
  make_batch,
  parts,
  prove,
  sequence_ratio,
  sg,
  token_mean,
)

from vespo_jax.objectives import make
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
  np.testing.assert_allclose(phi(log_w, 2.0, 3.0), positive, rtol=5e-6)
  np.testing.assert_allclose(phi(log_w, 3.0, 2.0), negative, rtol=5e-6)


def test_kernel_is_one_on_policy_exactly():
  assert phi(jnp.float32(0.0), 2.0, 3.0) == 1.0
  assert phi(jnp.float32(0.0), 3.0, 2.0) == 1.0


def vespo(positive, negative, power=0.0):
  """eq. 20 and appendix I: phi(W) = W^k exp(lambda (1 - W)), detached, over all tokens."""

  def published(logprobs, b):
    w = sequence_ratio(logprobs - b.behaviour, b.mask, power)
    of = lambda k, lam: w**k * jnp.exp(lam * (1 - w))
    kernel = sg(jnp.where(b.a >= 0, of(*positive), of(*negative)))
    return token_mean(-kernel * b.a * logprobs, b.mask)

  return published


def example(seed, spread=0.3):
  batch = make_batch(seed, spread)
  log_r, a, mask = parts(batch)
  log_w = (log_r * mask).sum(1, keepdims=True)
  assert_all_hit(mask, good_up=(a > 0) & (log_w > 0.2), good_down=(a > 0) & (log_w < -0.2))
  assert_all_hit(mask, bad_up=(a < 0) & (log_w > 0.2), bad_down=(a < 0) & (log_w < -0.2))
  return batch


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"k_pos": 1.0, "lambda_pos": 0.5, "k_neg": 4.0, "lambda_neg": 2.5},
    {"k_pos": 0.5, "lambda_pos": 0.0, "k_neg": 0.0, "lambda_neg": 1.0},
  ],
)
@pytest.mark.parametrize("spread", [0.3, 0.8])
def test_published_loss(options, spread):
  kernels = {"k_pos": 2.0, "lambda_pos": 3.0, "k_neg": 3.0, "lambda_neg": 2.0} | options
  k_pos, lambda_pos, k_neg, lambda_neg = kernels.values()
  batch = example(0, spread)
  prove(make("vespo", **options), vespo((k_pos, lambda_pos), (k_neg, lambda_neg)), batch)


@pytest.mark.parametrize("seed", range(3))
def test_gradient_is_that_of_the_implicit_surrogate(seed):
  """f with phi(W) = W f'(W): e^lam lam^-k gamma_lower(k, lam W) (arXiv 2602.10693 eq. 40-41)."""

  def published(logprobs, b):
    w = sequence_ratio(logprobs - b.behaviour, b.mask)[:, 0]
    of = lambda k, lam: jnp.exp(lam - k * jnp.log(lam) + gammaln(k)) * gammainc(k, lam * w)
    f = jnp.where(b.a[:, 0] >= 0, of(2.0, 3.0), of(3.0, 2.0))
    surrogate = -jnp.sum((f * b.a[:, 0])[b.mask.any(1)]) / b.mask.sum()
    detached = vespo((2.0, 3.0), (3.0, 2.0))(sg(logprobs), b)
    return surrogate - sg(surrogate) + detached  # its gradient, the value of the detached form

  prove(make("vespo"), published, example(seed), precisions=[(False, 5e-6), DOUBLE])


@pytest.mark.parametrize("symmetric,kernel", [("positive", (2.0, 3.0)), ("negative", (3.0, 2.0))])
def test_symmetric_variants(symmetric, kernel):
  """Figure 7: one kernel for both signs."""
  prove(make("vespo", symmetric=symmetric), vespo(kernel, kernel), example(3))
  other = {"k_pos": 1.5, "lambda_pos": 1.0, "k_neg": 2.5, "lambda_neg": 4.0}
  kernel = (1.5, 1.0) if symmetric == "positive" else (2.5, 4.0)
  prove(make("vespo", symmetric=symmetric, **other), vespo(kernel, kernel), example(4))


@pytest.mark.parametrize(
  "norm,power,precision",
  [
    ("linear", 1.0, SINGLE),
    ("linear", 1.0, DOUBLE),
    ("sqrt", 0.5, SINGLE),
    ("sqrt", 0.5, DOUBLE),
  ],
)
def test_length_normalised_variants(norm, power, precision):
  """Section 4.7: W^(1/T) and W^(1/sqrt(T)) in the place of W."""
  published = vespo((2.0, 3.0), (3.0, 2.0), power)
  prove(make("vespo", length_norm=norm), published, example(5, 0.8), precisions=[precision])


def test_longer_responses_have_a_wider_kernel():
  """phi^(L / T) where T > L, phi elsewhere."""

  def published(logprobs, b):
    w = sequence_ratio(logprobs - b.behaviour, b.mask)
    kernel = jnp.where(b.a >= 0, w**2 * jnp.exp(3 * (1 - w)), w**3 * jnp.exp(2 * (1 - w)))
    longer = jnp.sum(b.mask, axis=1, keepdims=True) / 3
    kernel = jnp.where(longer > 1, kernel ** (1 / longer), kernel)
    return token_mean(-sg(kernel) * b.a * logprobs, b.mask)

  batch = example(7, 0.8)
  tokens = batch["mask"].sum(1)
  assert ((tokens > 0) & (tokens < 3)).any() and (tokens > 3).any()
  prove(make("vespo", length_reference=3), published, batch)


def test_the_power_kernels_are_reinforce_and_sequence_is():
  batch = make_batch(6)
  of = lambda k: make("vespo", k_pos=k, k_neg=k, lambda_pos=0.0, lambda_neg=0.0)
  assert_same_gradient(of(0.0), make("reinforce"), batch)
  assert_same_gradient(of(1.0), make("sequence_is"), batch)
  given = [jnp.asarray(x, jnp.float32) for x in (parts(batch)[0], batch["advantages"])]
  given.append(jnp.asarray(batch["mask"]))
  np.testing.assert_allclose(of(1.0)(*given)[0], make("sequence_is")(*given)[0], rtol=1e-6)


def test_weight_is_the_product_over_the_whole_response():
  log_ratio = jnp.full((1, 4), 0.25)
  coefficients, _ = make("vespo")(log_ratio, jnp.ones(1), jnp.ones((1, 4), bool))
  np.testing.assert_allclose(coefficients, np.full((1, 4), phi(1.0, 2.0, 3.0)), rtol=1e-6)


def test_kernel_follows_the_sign_of_the_advantage():
  log_ratio = jnp.full((3, 1), np.log(2.0))
  coefficients, _ = make("vespo")(log_ratio, jnp.asarray([1.0, 0.0, -1.0]), jnp.ones((3, 1), bool))
  np.testing.assert_allclose(coefficients[:, 0], [0.199148, 0.199148, 1.08268], rtol=2e-5)


def test_refused_options():
  with pytest.raises(ValueError, match="at least 0"):
    make("vespo", lambda_pos=-1.0)
  with pytest.raises(ValueError, match="at least 0"):
    make("vespo", lambda_neg=-1.0)
  with pytest.raises(ValueError, match="symmetric='both'.*positive"):
    make("vespo", symmetric="both")
  with pytest.raises(ValueError, match="length_norm='square'.*sqrt"):
    make("vespo", length_norm="square")
  with pytest.raises(ValueError, match="length_reference=-1 must be at least 0"):
    make("vespo", length_reference=-1)
  with pytest.raises(ValueError, match="length_reference=8.*length_norm='sqrt'"):
    make("vespo", length_reference=8, length_norm="sqrt")


def test_the_ratio_of_a_token_is_held_to_twenty_nats_before_the_sum():
  """verl's `compute_policy_loss_vespo`: a token beyond that counts for as much."""
  log_ratio = jnp.asarray([[30.0, -21.0, -1.0], [20.0, -20.0, -1.0]])
  coefficients, _ = make("vespo")(log_ratio, jnp.ones(2), jnp.ones((2, 3), bool))
  np.testing.assert_allclose(*coefficients, rtol=1e-6)


def test_finite_at_extremes():
  assert_finite_at_extremes(make("vespo"))
  for norm in ("sqrt", "linear"):
    assert_finite_at_extremes(make("vespo", length_norm=norm))
  for far in (1e4, -1e4):
    given = jnp.full((1, 4), far), jnp.ones(1), jnp.ones((1, 4), bool)
    assert np.isfinite(make("vespo", length_reference=2)(*given)[0]).all()
