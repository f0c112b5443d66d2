"""Packed rows: they hold what was given, and change neither log-probs nor gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.learner.example import SPEC
from vespo_jax import advantages, models, objectives, sharding
from vespo_jax.learner.gradient import LossSettings, make_gradient
from vespo_jax.learner.update import compile_score
from vespo_jax.models.params import head_table
from vespo_jax.supervised import Encoded, Scorer, pack, summarise
from vespo_jax.supervised.packing import first_fit, rows_for

WIDTH = 16


def sequences(count=9, seed=0):
  """Of 2 to 11 tokens, some with what is trained on in two places."""
  rng = np.random.default_rng(seed)
  made = []
  for _ in range(count):
    n = int(rng.integers(2, 12))
    trained = rng.random(n) < 0.6
    trained[0], trained[-1] = False, True
    made.append(Encoded(rng.integers(0, 32, n).astype(np.int32), trained))
  return made


@functools.cache
def params():
  return jax.tree.map(lambda x: 3 * x, models.init(SPEC, jax.random.key(1)))


def alone(params, data):
  """Log-probs [N, T] of the tokens of sequences that have a row each, and which are trained on."""
  tokens_NT, trained_NT = np.zeros((len(data), WIDTH), np.int32), np.zeros((len(data), WIDTH), bool)
  for row, one in enumerate(data):  # what follows a sequence has no influence on it
    tokens_NT[row, : len(one)], trained_NT[row, : len(one)] = one.ids, one.trained
  hidden_NTD, _ = models.forward(params, SPEC, tokens_NT[:, :-1])
  logprobs_NTV = jax.nn.log_softmax(hidden_NTD @ head_table(params).T)
  taken = jnp.take_along_axis(logprobs_NTV, tokens_NT[:, 1:, None], axis=-1)[..., 0]
  return taken, trained_NT[:, 1:]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(20, 40))
def test_rows_hold_every_sequence_once_and_no_two_at_one_place(lengths, width):
  row_N, start_N = first_fit(np.array(lengths), width)
  used = np.zeros((len(lengths), width), int)
  for n, row, start in zip(lengths, row_N, start_N, strict=True):
    assert start + n <= width
    used[row, start : start + n] += 1
  assert used.sum() == sum(lengths) and used.max() == 1
  fewest = -(-sum(lengths) // width)
  assert fewest <= row_N.max() + 1 <= 2 * fewest  # first fit leaves at most one row half empty


def test_there_are_few_shapes_and_they_are_large_enough():
  assert [rows_for(n, 1) for n in (1, 7, 8, 9, 11, 17, 21, 33)] == [1, 7, 8, 10, 12, 20, 24, 40]
  for unit in (1, 4):
    made = [rows_for(n, unit) for n in range(1, 1025)]
    assert all(n <= rows <= max(1.25 * n, n + unit) for n, rows in enumerate(made, start=1))
    assert all(rows % unit == 0 for rows in made)
    assert len({rows for rows in made if 512 <= rows < 1024}) == 4


def test_many_batches_have_few_shapes_and_little_padding():
  """Of 64 sequences each, from a long-tailed distribution of lengths; a shape is a compilation."""
  rng = np.random.default_rng(0)
  lengths = np.clip(rng.lognormal(5.0, 0.6, 200 * 64).astype(int), 1, 1024).reshape(200, 64)
  rows = [rows_for(int(first_fit(one, 1024)[0].max()) + 1, 4) for one in lengths]
  assert len(set(rows)) <= 3
  assert lengths.sum() / (1024 * sum(rows)) > 0.8


def test_a_batch_says_where_everything_is():
  data = sequences()
  packed = pack(data, WIDTH, unit=4)
  batch = packed.batch
  P = len(batch.rewards_PR)
  assert P % 4 == 0 and batch.response_tokens_PRT.shape == (P, 1, WIDTH)
  for one, row, start, stop in zip(data, packed.row_N, packed.start_N, packed.stop_N, strict=True):
    np.testing.assert_array_equal(batch.response_tokens_PRT[row, 0, start:stop], one.ids)
    np.testing.assert_array_equal(batch.response_mask_PRT[row, 0, start:stop], one.trained)
    assert len(set(batch.segments_PRT[row, 0, start:stop])) == 1
  assert batch.real_PJ.sum() == packed.tokens == sum(map(len, data))
  assert packed.padding_fraction == pytest.approx(1 - packed.tokens / (P * WIDTH))
  with pytest.raises(ValueError, match="a sequence of 17 tokens in rows of 16"):
    pack([Encoded(np.zeros(17, np.int32), np.ones(17, bool))], WIDTH, 1)


def test_a_scorer_gives_what_each_sequence_gives_alone():
  """Over more rows than one call has, with a program of one shape."""
  data = sequences(count=40)
  mesh = sharding.make_mesh({"data": -1})
  score = compile_score(mesh, SPEC, LossSettings(micro_batches=2))
  scorer = Scorer(score, mesh, WIDTH, unit=2)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("vespo_jax.supervised.likelihood._TOKENS", 4 * WIDTH)
    patch.setattr("vespo_jax.supervised.likelihood._SEQUENCES", 25)
    logprob_N, tokens_N = scorer.logprobs(params(), data)
  logprobs_NT, trained_NT = jax.jit(lambda params: alone(params, data))(params())
  np.testing.assert_allclose(logprob_N, (logprobs_NT * trained_NT).sum(axis=1), rtol=1e-5)
  np.testing.assert_array_equal(tokens_N, trained_NT.sum(axis=1))


def test_a_likelihood_is_what_it_says():
  found = summarise(np.array([-2.0, -6.0]), np.array([1, 2]))
  assert found.nll_per_token == pytest.approx(8 / 3) and found.nll_per_sequence == 4
  assert found.geometric_mean_probability == pytest.approx((np.exp(-2) + np.exp(-3)) / 2)
  assert found.perplexity == pytest.approx((np.exp(2) + np.exp(3)) / 2)
  assert (found.sequences, found.tokens) == (2, 3)


def cross_entropy(logprobs):
  return -logprobs


def dynamic(logprobs):
  return -jax.lax.stop_gradient(jnp.exp(logprobs)) * logprobs


@pytest.mark.parametrize("name,micro_batches", [("cross_entropy", 1), ("dft", 2)])
def test_the_learners_gradient_is_that_of_the_plain_loss(name, micro_batches):
  """Of the mean over trained tokens, each sequence in a row of its own, differentiated by jax."""
  data = sequences()
  objective = objectives.dft() if name == "dft" else objectives.make("reinforce")
  settings = LossSettings(
    aggregation="token-mean", micro_batches=micro_batches, compute=models.Compute(remat="layers")
  )
  gradient = make_gradient(SPEC, objective, advantages.make("rloo"), settings)
  batch = pack(data, WIDTH, unit=2).batch
  grads, evaluated = jax.jit(lambda params, batch: gradient(params, batch))(params(), batch)

  def plain(params):
    logprobs_NT, trained_NT = alone(params, data)
    losses_NT = (dynamic if name == "dft" else cross_entropy)(logprobs_NT)
    return jnp.sum(losses_NT * trained_NT) / trained_NT.sum()

  loss, expected = jax.jit(jax.value_and_grad(plain))(params())
  assert float(evaluated.loss) == pytest.approx(float(loss), rel=1e-5)
  for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
    (ours,) = [x for place, x in jax.tree_util.tree_leaves_with_path(grads) if place == path]
    error = jnp.linalg.norm(ours - leaf) / jnp.linalg.norm(leaf)
    assert error < 3e-5, (path, error)
