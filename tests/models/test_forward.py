"""The forward pass: causality, caching, packing and the group layout are one function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import MIXTURE

from vespo_jax import models
from vespo_jax.models.transformer import positions_in_segments

B, T = 3, 7
forward = jax.jit(models.forward, static_argnums=1)
token_logprobs = jax.jit(models.token_logprobs, static_argnums=1)


def tokens(shape=(B, T), seed=0):
  return jnp.asarray(np.random.default_rng(seed).integers(0, 61, shape), jnp.int32)


@MIXTURE
def test_causality_by_gradient(model):
  """The output at t depends on every input up to t and exactly not on any later one."""
  spec, params = model
  ids = tokens((1, T))

  def output_at(embedded, t):
    # differentiating with respect to the embedding of each position: one table row per position
    table = jnp.concatenate([params["embedding"], embedded])
    positions = jnp.arange(T)[None] + spec.vocab_size
    hidden, _ = forward({**params, "embedding": table}, spec, positions)
    return jnp.sum(hidden[0, t] * jnp.arange(1.0, 1 + spec.width))

  embedded = params["embedding"][ids[0]]
  gradient = jax.jit(jax.grad(output_at))
  for t in range(T):
    moved = np.abs(np.asarray(gradient(embedded, t))).max(axis=-1)
    assert (moved[: t + 1] > 1e-6).all()
    assert (moved[t + 1 :] == 0).all()


@MIXTURE
def test_cached_decoding_equals_the_full_forward(model):
  spec, params = model
  ids = tokens()
  full, none = forward(params, spec, ids)
  assert none is None
  cache = models.init_cache(spec, B, T + 2)
  hidden, cache = forward(params, spec, ids[:, :3], cache=cache)
  pieces = [hidden]
  for t in range(3, T):
    hidden, cache = forward(params, spec, ids[:, t : t + 1], cache=cache)
    pieces.append(hidden)
  np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), full, atol=2e-5, rtol=1e-4)
  np.testing.assert_array_equal(cache.lengths_B, T)


@MIXTURE
def test_cached_rows_are_each_as_long_as_they_are(model):
  """Prompts padded on the right, each put into two rows of a wider cache, then continued there."""
  spec, params = model
  prompts, lengths = tokens((2, 5)), np.array([5, 3])
  mask = jnp.asarray(np.arange(5) < lengths[:, None])
  continuations = tokens((4, 3), seed=1)
  _, source = forward(params, spec, prompts, segments=mask, cache=models.init_cache(spec, 2, 5))
  wide = jax.tree.map(lambda x: x + 7, models.init_cache(spec, 5, 9))  # rows hold something else
  from_rows, to_rows = jnp.array([0, 0, 1, 1, 1]), jnp.array([3, 0, 1, 2, 4])
  cache = models.copy_rows(wide, source, from_rows, to_rows, 4)
  np.testing.assert_array_equal(cache.lengths_B, [5, 3, 3, 5, 7])
  for keys, before in zip(cache.keys, wide.keys, strict=True):
    np.testing.assert_array_equal(keys[4], before[4])
  rows = jnp.concatenate([continuations, tokens((1, 3))])[jnp.array([1, 2, 3, 0, 4])]
  hidden, cache = forward(params, spec, rows[:, :2], cache=cache)
  last, _ = forward(params, spec, rows[:, 2:], cache=cache)
  hidden = jnp.concatenate([hidden, last], axis=1)
  for row, prompt in zip(to_rows[:4], from_rows[:4], strict=True):
    whole = jnp.concatenate([prompts[prompt, : lengths[prompt]], rows[row]])
    alone, _ = forward(params, spec, whole[None])
    np.testing.assert_allclose(hidden[row], alone[0, -3:], atol=2e-5, rtol=1e-4)


@MIXTURE
def test_packed_and_padded_rows_equal_single_sequences(model):
  spec, params = model
  first, second = tokens((1, 4), seed=1), tokens((1, 3), seed=2)
  packed = jnp.concatenate([jnp.zeros((1, 1), jnp.int32), first, second, tokens((1, 2))], axis=1)
  segments = jnp.asarray([[0, 1, 1, 1, 1, 2, 2, 2, 0, 0]])
  hidden, _ = forward(params, spec, packed, segments=segments)
  for part, start in ((first, 1), (second, 5)):
    alone, _ = forward(params, spec, part)
    np.testing.assert_allclose(
      hidden[:, start : start + part.shape[1]], alone, atol=2e-5, rtol=1e-4
    )
  logprobs, entropy = token_logprobs(params, spec, packed, segments=segments)
  alone, alone_entropy = token_logprobs(params, spec, second)
  np.testing.assert_allclose(logprobs[:, 5:8], alone, atol=2e-5)
  np.testing.assert_allclose(entropy[:, 5:8], alone_entropy, atol=2e-5)
  assert not np.asarray(logprobs[0, [0, 1, 5, 8, 9]]).any()


def test_padding_within_a_segment_changes_nothing(model):
  spec, params = model
  whole = tokens((2, 7))
  holed = jnp.insert(whole, jnp.array([3, 3]), 9, axis=1)  # a padded prompt, a response
  segments = jnp.where(jnp.isin(jnp.arange(9), jnp.array([3, 4])), 0, 1)
  segments = jnp.broadcast_to(segments, holed.shape)
  found = token_logprobs(params, spec, holed, segments=segments)
  real = np.flatnonzero(np.asarray(segments[0]))
  for got, want in zip(found, token_logprobs(params, spec, whole), strict=True):
    np.testing.assert_allclose(np.asarray(got)[:, real], want, atol=2e-5)
    assert not np.asarray(got)[:, [3, 4]].any()


def test_ids_beyond_the_vocabulary_have_no_log_prob(model):
  spec, params = model
  for id in (-1, spec.vocab_size):
    with pytest.raises(ValueError, match=f"token {id} is not in a vocabulary of {spec.vocab_size}"):
      models.token_logprobs(params, spec, jnp.array([[1, id]]))


@MIXTURE
def test_groups_equal_rows_in_value_and_gradient(model):
  spec, params = model
  P, S, R, Tr = 2, 5, 3, 4
  prompts, responses = tokens((P, S)), tokens((P, R, Tr), seed=3)
  lengths = [5, 2]
  mask = jnp.asarray(np.arange(S)[::-1] < np.array(lengths)[:, None])
  weights = jnp.asarray(np.random.default_rng(4).normal(size=(P, R, Tr, spec.width)), jnp.float32)

  def grouped(params):
    hidden, _ = models.forward_groups(params, spec, prompts, mask, responses, responses > 0)
    return jnp.sum(hidden * weights), hidden

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def of_row(params, prompt, response, weights):
    hidden, _ = models.forward(params, spec, jnp.concatenate([prompt, response])[None])
    hidden = hidden[0, len(prompt) - 1 : -1]
    return jnp.sum(hidden * weights), hidden

  (_, hidden), grads = jax.jit(jax.value_and_grad(grouped, has_aux=True))(params)
  expected_grads = jax.tree.map(jnp.zeros_like, params)
  for p, r in np.ndindex(P, R):
    own = of_row(params, prompts[p, S - lengths[p] :], responses[p, r], weights[p, r])
    expected_grads = jax.tree.map(jnp.add, expected_grads, own[0])
    np.testing.assert_allclose(hidden[p, r], own[1], atol=2e-5, rtol=1e-4)
  for (path, grad), want in zip(
    jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected_grads), strict=True
  ):
    scale = np.abs(want).max()
    name = jax.tree_util.keystr(path)
    np.testing.assert_allclose(grad / scale, want / scale, atol=1e-4, err_msg=name)


def test_explicit_positions_shift_nothing_but_the_rotation(model):
  """Rotary attention is relative: moving all positions by a constant changes no output."""
  spec, params = model
  ids = tokens()
  hidden, _ = forward(params, spec, ids)
  shifted, _ = forward(params, spec, ids, positions=jnp.broadcast_to(jnp.arange(T) + 11, (B, T)))
  np.testing.assert_allclose(hidden, shifted, atol=1e-4)
  stretched, _ = forward(params, spec, ids, positions=jnp.broadcast_to(2 * jnp.arange(T), (B, T)))
  assert np.abs(np.asarray(hidden - stretched)).max() > 1e-3


@pytest.mark.parametrize(
  "segments,expected",
  [
    ([1, 1, 1], [0, 1, 2]),
    ([0, 0, 1, 1], [0, 0, 0, 1]),
    ([1, 1, 2, 2, 0], [0, 1, 0, 1, 1]),
    ([0, 1, 1, 0, 2, 2], [0, 0, 1, 1, 0, 1]),
    ([1, 1, 0, 0, 1, 1, 0, 2], [0, 1, 1, 1, 2, 3, 3, 0]),
  ],
)
def test_positions_in_segments(segments, expected):
  np.testing.assert_array_equal(positions_in_segments(jnp.asarray([segments])), [expected])
