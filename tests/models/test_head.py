"""The chunked head against dense logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import MIXTURE

from vespo_jax import models
from vespo_jax.models import head


def dense(hidden, table, targets, temperature):
  logprobs = jax.nn.log_softmax(hidden @ table.T / temperature, axis=-1)
  entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
  return jnp.take_along_axis(logprobs, targets[:, None], axis=-1)[:, 0], entropy


@pytest.mark.parametrize("tokens", [1, 128, 130, 700])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradients_equal_the_dense_head(tokens, temperature, monkeypatch):
  monkeypatch.setattr(head, "_LEAST_COLUMNS", 16)  # 50 columns in four blocks that overlap
  monkeypatch.setattr(head, "_BLOCK_LOGITS", 1)
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.normal(size=(tokens, 16)), jnp.float32)
  table = jnp.asarray(rng.normal(size=(50, 16)), jnp.float32)
  targets = jnp.asarray(rng.integers(0, 50, tokens))
  weights = jnp.asarray(rng.normal(size=(2, tokens)), jnp.float32)

  def run(function):
    def total(hidden, table):
      outputs = function(hidden, table, targets, temperature)
      return sum(jnp.sum(w * x) for w, x in zip(weights, outputs, strict=True)), outputs

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(hidden, table)

  (_, outputs), grads = run(models.chunked_logprobs)
  (_, expected), expected_grads = run(dense)
  for got, want in zip((*outputs, *grads), (*expected, *expected_grads), strict=True):
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)


def test_a_sum_over_many_blocks_is_not_rounded_to_bfloat16(monkeypatch):
  monkeypatch.setattr(head, "_BLOCK_LOGITS", 1)
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.normal(size=(4, 16)), jnp.bfloat16)
  table = jnp.asarray(rng.normal(size=(128 * 64, 16)), jnp.bfloat16)  # 64 blocks
  targets = jnp.asarray(rng.integers(0, len(table), 4))

  def gradient(function, *arguments):
    loss = lambda h, t: jnp.sum(function(h, t, targets, 1.0)[0])
    return np.asarray(jax.jit(jax.grad(loss))(*arguments), np.float32)

  exact = gradient(dense, hidden.astype(jnp.float32), table.astype(jnp.float32))
  found = gradient(models.chunked_logprobs, hidden, table)
  # logits and probabilities are rounded once, 2^-9 each; a sum of 64 roundings would be beyond
  np.testing.assert_allclose(found, exact, atol=4 * 2.0**-9 * np.abs(exact).max())


def test_no_array_of_tokens_by_vocabulary_is_built():
  """In the compiled forward and backward pass, temporaries are far below one [tokens, V] array."""
  tokens, width, vocab = 8192, 32, 4096
  arguments = (
    jax.ShapeDtypeStruct((tokens, width), jnp.float32),
    jax.ShapeDtypeStruct((vocab, width), jnp.float32),
    jax.ShapeDtypeStruct((tokens,), jnp.int32),
  )

  def temporary_bytes(function):
    def loss(hidden, table, targets):
      return jnp.sum(function(hidden, table, targets, 1.0)[0])

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  logits = 4 * tokens * vocab
  assert temporary_bytes(dense) > logits
  assert temporary_bytes(models.chunked_logprobs) < logits / 3  # two blocks of 16 MiB


@MIXTURE
def test_token_logprobs_of_a_row(model):
  spec, params = model
  ids = jnp.asarray(np.random.default_rng(0).integers(0, 61, (2, 6)), jnp.int32)
  scored = jax.jit(models.token_logprobs, static_argnums=1)
  logprobs, entropy = scored(params, spec, ids, temperature=0.7)
  hidden, _ = jax.jit(models.forward, static_argnums=1)(params, spec, ids)
  want = jax.nn.log_softmax(hidden @ models.head_table(params).T / 0.7, axis=-1)
  want = jnp.take_along_axis(want[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]
  np.testing.assert_allclose(logprobs[:, 1:], want, atol=1e-5)
  assert not np.asarray(logprobs[:, 0]).any() and not np.asarray(entropy[:, 0]).any()
  logprobs, entropy = scored(params, spec, ids[:, :1])  # which nothing was before
  assert logprobs.shape == entropy.shape == (2, 1) and not np.asarray(logprobs).any()
