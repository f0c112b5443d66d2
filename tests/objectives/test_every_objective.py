"""Properties that hold for every registered objective; a new one is tested by being registered."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.marks import slow_but
from vespo_jax import objectives
from vespo_jax.objectives import AGGREGATIONS

B, T = 6, 5
EVERY = pytest.mark.parametrize("name", objectives.names())
OWN = [(name, objectives.make(name).aggregation) for name in objectives.names()]
EVERY_MODE = pytest.mark.parametrize(
  "name,mode",
  slow_but(
    itertools.product(objectives.names(), AGGREGATIONS),
    *(OWN + [("vespo", mode) for mode in AGGREGATIONS]),
  ),
)


def example(scale=0.3, seed=0):
  rng = np.random.default_rng(seed)
  mask = np.arange(T) < np.array([5, 3, 1, 4, 2, 5])[:, None]
  return {
    "policy_logprobs": jnp.asarray(rng.normal(-1.0, 0.5, (B, T)), jnp.float32),
    "behaviour_logprobs": jnp.asarray(rng.normal(-1.0, scale, (B, T)), jnp.float32),
    "advantages": jnp.asarray([1.0, -0.5, 2.0, -1.5, 0.0, 0.7], jnp.float32),
    "mask": jnp.asarray(mask),
  }


def loss_and_grad(objective, batch, **kwargs):
  def loss(policy_logprobs):
    return objectives.policy_loss(
      objective, **{**batch, "policy_logprobs": policy_logprobs}, **kwargs
    )[0]

  return jax.value_and_grad(loss)(batch["policy_logprobs"])


@functools.cache
def compiled_loss_and_grad(name):
  return jax.jit(functools.partial(loss_and_grad, objectives.make(name)))


def coefficients_of(objective, batch):
  log_ratio = batch["policy_logprobs"] - batch["behaviour_logprobs"]
  return objective(log_ratio, batch["advantages"], batch["mask"], extras=batch)


@EVERY_MODE
def test_on_policy_it_is_reinforce(name, mode):
  batch = example()
  batch["behaviour_logprobs"] = batch["policy_logprobs"]
  _, grad = loss_and_grad(objectives.make(name), batch, aggregation=mode)
  _, expected = loss_and_grad(objectives.make("reinforce"), batch, aggregation=mode)
  np.testing.assert_allclose(grad, expected, rtol=1e-6)
  assert np.abs(expected).max() > 0


@EVERY
@pytest.mark.parametrize("size", [50.0, 1e4, 1e30])
def test_extreme_ratios_are_finite(name, size):
  batch, compiled = example(), compiled_loss_and_grad(name)
  signs = jnp.asarray(np.random.default_rng(1).choice([-1.0, 1.0], (B, T)), jnp.float32)
  for direction in (signs, jnp.ones((B, T)), -jnp.ones((B, T))):
    batch["behaviour_logprobs"] = batch["policy_logprobs"] - size * direction
    chex.assert_tree_all_finite(compiled(batch))


@EVERY
def test_tokens_that_a_policy_cannot_give_are_finite(name):
  """Log-probs of -inf under the policy, under the behaviour policy, and under both."""
  batch = example()
  for key, row, column in (("policy", 0, 1), ("behaviour", 1, 0), ("policy", 3, 2)):
    batch[f"{key}_logprobs"] = batch[f"{key}_logprobs"].at[row, column].set(-jnp.inf)
  batch["behaviour_logprobs"] = batch["behaviour_logprobs"].at[3, 2].set(-jnp.inf)
  chex.assert_tree_all_finite(compiled_loss_and_grad(name)(batch))


@EVERY_MODE
def test_what_is_masked_has_no_effect(name, mode):
  batch = example()
  batch["mask"] = batch["mask"].at[3].set(False)  # row 3 is no sequence at all
  hidden = {
    **batch,
    "policy_logprobs": jnp.where(batch["mask"], batch["policy_logprobs"], jnp.nan),
    "behaviour_logprobs": jnp.where(batch["mask"], batch["behaviour_logprobs"], jnp.inf),
    "advantages": batch["advantages"].at[3].set(jnp.nan),
  }
  without = {key: jnp.delete(value, 3, axis=0) for key, value in batch.items()}
  loss, grad = loss_and_grad(objectives.make(name), hidden, aggregation=mode)
  loss2, grad2 = loss_and_grad(objectives.make(name), without, aggregation=mode)
  np.testing.assert_allclose(loss, loss2, rtol=1e-6)
  np.testing.assert_allclose(jnp.delete(grad, 3, axis=0), grad2, rtol=1e-6)
  assert not np.asarray(grad[3]).any()


@EVERY
def test_padding_and_permutation(name):
  batch = example()
  objective = objectives.make(name)
  coefficients, _ = coefficients_of(objective, batch)
  order = np.array([4, 0, 5, 2, 1, 3])
  padded = {k: jnp.pad(v, [(0, 0), (0, 3)]) if v.ndim == 2 else v for k, v in batch.items()}
  padded = {key: value[order] for key, value in padded.items()}
  other, _ = coefficients_of(objective, padded)
  np.testing.assert_allclose(other[:, :T], coefficients[order], rtol=1e-6)
  assert not np.asarray(other[:, T:]).any()


@EVERY
def test_no_row_sees_another_unless_the_method_says_so(name):
  objective = objectives.make(name)
  if objective.batch_wide:
    pytest.skip("its coefficients are of the whole minibatch")
  batch = example(scale=1.5)
  together, _ = coefficients_of(objective, batch)
  for row in range(B):
    alone, _ = coefficients_of(objective, {k: v[row : row + 1] for k, v in batch.items()})
    np.testing.assert_allclose(alone[0], together[row], rtol=1e-5)


@EVERY_MODE
def test_micro_batches_add_up(name, mode):
  """Of the weights, where these are of the whole minibatch; of the whole loss everywhere else."""
  batch = example()
  objective = objectives.make(name)
  loss, grad = loss_and_grad(objective, batch, aggregation=mode)
  normalizer = objectives.count(batch["mask"], mode)
  whole, _ = objectives.token_weights(objective, **batch)

  def of_piece(piece, weights):
    if not objective.batch_wide:
      return loss_and_grad(objective, piece, aggregation=mode, normalizer=normalizer)
    loss = lambda logprobs: objectives.weighted_loss(weights, logprobs, mode, normalizer)
    return jax.value_and_grad(loss)(piece["policy_logprobs"])

  pieces = 3
  parts = [of_piece(*jax.tree.map(lambda x: x[i::pieces], (batch, whole))) for i in range(pieces)]  # noqa: B023
  np.testing.assert_allclose(sum(part[0] for part in parts), loss, rtol=1e-5)
  for i in range(pieces):
    np.testing.assert_allclose(parts[i][1], grad[i::pieces], rtol=1e-5)


@pytest.mark.parametrize("name", slow_but(objectives.names(), "vespo", "bapo"))
def test_jit_equals_eager(name):
  batch = example()
  eager = loss_and_grad(objectives.make(name), batch)
  chex.assert_trees_all_close(eager, compiled_loss_and_grad(name)(batch), rtol=1e-6)


@EVERY
def test_only_the_policy_is_differentiated(name):
  batch = example()
  objective = objectives.make(name)

  def loss(behaviour, advantages):
    inputs = {**batch, "behaviour_logprobs": behaviour, "advantages": advantages}
    return objectives.policy_loss(objective, **inputs)[0]

  grads = jax.grad(loss, argnums=(0, 1))(batch["behaviour_logprobs"], batch["advantages"])
  assert not any(np.asarray(grad).any() for grad in grads)


@pytest.mark.slow  # tests of single methods are of both precisions
@EVERY
def test_float32_is_close_to_float64(name):
  batch = example()
  loss, grad = loss_and_grad(objectives.make(name), batch)
  with jax.enable_x64(True):
    wide = {
      k: jnp.asarray(np.asarray(v), jnp.float64 if v.dtype != bool else bool)
      for k, v in batch.items()
    }
    loss64, grad64 = loss_and_grad(objectives.make(name), wide)
    assert grad64.dtype == jnp.float64
  np.testing.assert_allclose(loss, loss64, rtol=1e-5)
  np.testing.assert_allclose(grad, grad64, rtol=1e-5, atol=1e-7)


def test_unknown_names_are_refused_with_the_known_ones():
  with pytest.raises(ValueError, match="unknown objective 'vepso'.*did you mean 'vespo'.*grpo"):
    objectives.make("vepso")
  with pytest.raises(ValueError, match="'vespo' has no option 'tau'.*k_pos"):
    objectives.make("vespo", tau=1.0)
  with pytest.raises(ValueError, match="unknown aggregation 'mean'.*token-mean"):
    objectives.policy_loss(objectives.make("vespo"), **example(), aggregation="mean")
  with pytest.raises(ValueError, match="registered twice"):
    objectives.registry.register("vespo")(lambda: None)
