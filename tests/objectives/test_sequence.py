"""Sequence weights and none against their publications: sequence IS, VCPO, TOPR, REINFORCE."""

import jax.numpy as jnp
import numpy as np
import pytest
from published import (
  DOUBLE,
  SINGLE,
  assert_all_hit,
  assert_finite_at_extremes,
  assert_same_gradient,
  gradient,
  make_batch,
  parts,
  prove,
  seq_mean_token_mean,
  seq_mean_token_sum,
  sequence_ratio,
  sg,
)

from vespo_jax.objectives import make


def test_reinforce():
  published = lambda logprobs, b: seq_mean_token_sum(-b.a * logprobs, b.mask)
  prove(make("reinforce"), published, make_batch(0))


def test_sequence_is():
  def published(logprobs, b):
    w = sg(sequence_ratio(logprobs - b.behaviour, b.mask))
    return seq_mean_token_sum(-w * b.a * logprobs, b.mask)

  batch = make_batch(1)
  log_r, a, mask = parts(batch)
  log_w = (log_r * mask).sum(1, keepdims=True)
  assert_all_hit(mask, likelier=log_w > 1, unlikelier=log_w < -1)
  prove(make("sequence_is"), published, batch)


def test_sequence_is_has_the_gradient_of_the_reweighted_return():
  """E_mu[W A], differentiated through W: the identity that makes the estimator unbiased."""

  def reweighted(logprobs, b):
    w = sequence_ratio(logprobs - b.behaviour, b.mask)[:, 0]
    value = jnp.mean((-w * b.a[:, 0])[b.mask.any(1)])
    detached = seq_mean_token_sum(-sg(w)[:, None] * b.a * sg(logprobs), b.mask)
    return value - sg(value) + detached  # its gradient, the value of the detached form

  prove(make("sequence_is"), reweighted, make_batch(5, spread=0.3))  # whose terms do not cancel


@pytest.mark.parametrize("cap", [8.0, 1.5])
def test_vcpo(cap):
  """arXiv 2602.17616: min(W, cap), detached, under the released scripts' aggregation."""

  def published(logprobs, b):
    w = sg(jnp.minimum(sequence_ratio(logprobs - b.behaviour, b.mask), cap))
    return seq_mean_token_mean(-w * b.a * logprobs, b.mask)

  batch = make_batch(3, spread=1.0)
  log_r, a, mask = parts(batch)
  w = np.exp((log_r * mask).sum(1))
  assert_all_hit(mask, capped=(w > cap)[:, None])
  prove(make("vcpo", cap=cap), published, batch)
  if cap == 8.0:
    prove(make("vcpo"), published, batch)
  given = [jnp.asarray(x, jnp.float32) for x in (log_r, batch["advantages"])]
  _, metrics = make("vcpo", cap=cap)(*given, jnp.asarray(mask))
  wanted = (w > cap)[mask.any(1)].mean()
  np.testing.assert_allclose(metrics["objective/truncated_fraction"], wanted, rtol=1e-6)


def test_vcpo_without_a_cap_is_sequence_is():
  batch = make_batch(4)
  assert_same_gradient(make("vcpo", cap=1e9), make("sequence_is"), batch)


@pytest.mark.parametrize("power,options", [(0, {}), (1, {"length_norm": "linear"})])
def test_topr(power, options):
  """arXiv 2503.14286 eq. 10, canonical bounds: [1, 1] where A > 0 and [0, 1] where A < 0."""

  def published(logprobs, b):
    w = sequence_ratio(logprobs - b.behaviour, b.mask, power)
    weight = sg(jnp.where(b.a > 0, jnp.clip(w, 1.0, 1.0), jnp.clip(w, 0.0, 1.0)))
    return seq_mean_token_mean(-weight * b.a * logprobs, b.mask)

  batch = make_batch(5)
  log_r, a, mask = parts(batch)
  log_w = (log_r * mask).sum(1, keepdims=True)
  assert_all_hit(mask, tapered=(a < 0) & (log_w < 0), capped=(a < 0) & (log_w > 0), good=a > 0)
  prove(make("topr", **options), published, batch)


@pytest.mark.parametrize(
  "precision",
  [
    SINGLE,
    DOUBLE,
  ],
)
def test_topr_by_the_square_root_of_the_length(precision):
  def published(logprobs, b):
    w = sequence_ratio(logprobs - b.behaviour, b.mask, 0.5)
    weight = sg(jnp.where(b.a > 0, 1.0, jnp.minimum(w, 1.0)))
    return seq_mean_token_mean(-weight * b.a * logprobs, b.mask)

  prove(make("topr", length_norm="sqrt"), published, make_batch(6), precisions=[precision])


def test_topr_by_token():
  """Trinity-RFT's reading: the ratio of each token in the place of the sequence's."""

  def published(logprobs, b):
    r = jnp.exp(logprobs - b.behaviour)
    weight = sg(jnp.where(b.a > 0, 1.0, jnp.clip(r, 0.0, 1.0)))
    return seq_mean_token_mean(-weight * b.a * logprobs, b.mask)

  prove(make("topr", level="token"), published, make_batch(7))


def test_topr_refuses_what_it_does_not_know():
  with pytest.raises(ValueError, match="length_norm='cubic'.*none.*sqrt.*linear"):
    make("topr", length_norm="cubic")
  with pytest.raises(ValueError, match="level='word'.*sequence.*token"):
    make("topr", level="word")
  with pytest.raises(ValueError, match="length_norm='linear' is of level='sequence'"):
    make("topr", level="token", length_norm="linear")


def test_of_single_tokens_the_weight_is_the_token_ratio():
  batch = make_batch(8, width=1, rows=40)
  log_r, a, mask = parts(batch)
  unclipped = make("cispo", clip_low=1.0, clip_high=1e9)
  for name, options in (("sequence_is", {}), ("vcpo", {"cap": 1e9})):
    assert_same_gradient(make(name, **options), unclipped, batch)
  by_token = make("topr", level="token")
  for norm in ("none", "sqrt", "linear"):
    assert_same_gradient(make("topr", length_norm=norm), by_token, batch)


def test_where_the_policy_has_grown_likelier_topr_is_reinforce():
  batch = make_batch(9, spread=0.2, drift=1.0)
  log_r, _, mask = parts(batch)
  assert (log_r[mask] > 0).all()
  assert_same_gradient(make("topr"), make("reinforce"), batch)


def test_a_ratio_is_held_to_twenty_nats_once():
  """Of a token, or of a sequence, whose tokens may be further off: as in verl, which bounds them
  before their sum for VESPO alone."""
  for logs, expected in (([30.0, -15.0], 15.0), ([15.0, 15.0], 20.0), ([-15.0, -15.0], -20.0)):
    log_ratio, mask = jnp.asarray([logs]), jnp.ones((1, 2), bool)
    coefficients, _ = make("sequence_is")(log_ratio, jnp.ones(1), mask)
    np.testing.assert_allclose(coefficients, np.exp([[expected] * 2]), rtol=1e-6)
  token = make("cispo", clip_high=1e9)
  coefficients, _ = token(jnp.asarray([[30.0, -30.0]]), -jnp.ones(1), jnp.ones((1, 2), bool))
  np.testing.assert_allclose(coefficients, np.exp([[20.0, -20.0]]), rtol=1e-6)


def test_a_row_has_one_weight_on_all_its_tokens_and_none_elsewhere():
  batch = make_batch(10)
  grad, mask = gradient(make("sequence_is"), batch), batch["mask"]
  assert (grad[~mask] == 0).all()
  for row, tokens in zip(grad, mask, strict=True):
    assert np.ptp(row[tokens]) == 0 if tokens.any() else True


@pytest.mark.parametrize("name", ["sequence_is", "vcpo", "topr", "gspo", "gspo_token", "luspo"])
def test_tokens_far_off_cancel_in_the_ratio_of_a_sequence(name):
  """Two rows of one log ratio, of which one has tokens beyond +-20, have one coefficient."""
  log_ratio = jnp.asarray([[-50.0, 44.0, 3.0, -1.0], [-1.0, -1.0, -1.0, -1.0]])
  for advantage in (1.0, -1.0):
    coefficients, _ = make(name)(log_ratio, jnp.full(2, advantage), jnp.ones((2, 4), bool))
    np.testing.assert_allclose(*coefficients, rtol=1e-6)


@pytest.mark.parametrize("name", ["reinforce", "sequence_is", "vcpo", "topr"])
def test_finite_at_extremes(name):
  assert_finite_at_extremes(make(name))
  if name == "topr":
    assert_finite_at_extremes(make(name, level="token"))
