"""One update: what it computes, and what must not change it."""

import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vespo_jax import models, objectives, sharding
from vespo_jax.learner.optimizer import OptimizerSettings, make_optimizer, schedule
from vespo_jax.learner.update import (
  LOG_W,
  UpdateSettings,
  compile_update,
  init_state,
  make_update,
  place_state,
)
from vespo_jax.types import TrainBatch

SPEC = models.ModelSpec(
  vocab_size=32, width=32, layers=2, heads=8, kv_heads=8, head_width=4, mlp_width=64
)
# A large epsilon keeps Adam's step smooth in the gradient, so that rounding of a near-zero gradient
# is not blown up to a whole step and the comparisons below can be tight.
OPTIMIZER = OptimizerSettings(learning_rate=1e-3, warmup_updates=2, weight_decay=0.1, epsilon=1e-2)


def example_batch(prompts=16, samples=4, prompt_width=16, width=5, seed=0):
  rng = np.random.default_rng(seed)
  shape = (prompts, samples, width)
  lengths = rng.integers(0, width + 1, shape[:2])  # some rows are no sequence at all
  return TrainBatch(
    prompt_tokens_PS=rng.integers(0, 32, (prompts, prompt_width)).astype(np.int32),
    prompt_mask_PS=np.arange(prompt_width)[::-1] < rng.integers(1, 17, (prompts, 1)),
    response_tokens_PRT=rng.integers(0, 32, shape).astype(np.int32),
    response_mask_PRT=np.arange(width) < lengths[..., None],
    behaviour_logprobs_PRT=rng.normal(-3.4, 0.2, shape).astype(np.float32),
    advantages_PR=rng.normal(size=shape[:2]).astype(np.float32),
  )


def fresh_state():
  return init_state(models.init(SPEC, jax.random.key(0)), make_optimizer(OPTIMIZER))


def run(name="vespo", updates=2, mesh=None, **settings):
  mesh = mesh or sharding.make_mesh({"data": -1})
  update = make_update(
    SPEC, objectives.make(name), make_optimizer(OPTIMIZER), UpdateSettings(**settings)
  )
  state = place_state(mesh, SPEC, fresh_state())
  update = compile_update(update, mesh, SPEC, state)
  rows = []
  for seed in range(updates):
    batch = jax.device_put(example_batch(seed=seed), sharding.batch_sharding(mesh))
    state, metrics = update(state, batch)
    rows.append(jax.device_get(metrics))
  return jax.device_get(state), rows


@pytest.mark.parametrize("name,aggregation", [("vespo", None), ("grpo", "token-sum")])
def test_the_number_of_micro_batches_changes_nothing(name, aggregation):
  one = run(name, aggregation=aggregation, micro_batches=1)
  for pieces in (2, 16):
    other = run(name, aggregation=aggregation, micro_batches=pieces)
    chex.assert_trees_all_close(one[0].params, other[0].params, atol=1e-7, rtol=1e-5)
    chex.assert_trees_all_close(one[1], other[1], rtol=2e-4, atol=1e-6)


def test_the_update_is_adamw_on_the_gradient_of_the_loss():
  """Against the same step written with the row layout, dense log-probs and plain optax."""
  batch = example_batch()
  state = fresh_state()
  optimizer = make_optimizer(OPTIMIZER)

  def loss(params):
    prompts = np.repeat(batch.prompt_tokens_PS, 4, axis=0)
    rows = np.concatenate([prompts, batch.response_tokens_PRT.reshape(64, -1)], axis=1)
    real = np.pad(np.repeat(batch.prompt_mask_PS, 4, axis=0), [(0, 0), (0, 5)], constant_values=1)
    logprobs, _ = models.token_logprobs(params, SPEC, rows, segments=real.astype(np.int32))
    return objectives.policy_loss(
      objectives.make("vespo"),
      policy_logprobs=logprobs[:, 16:],
      behaviour_logprobs=jnp.asarray(batch.behaviour_logprobs_PRT.reshape(64, -1)),
      advantages=jnp.asarray(batch.advantages_PR.reshape(-1)),
      mask=jnp.asarray(batch.response_mask_PRT.reshape(64, -1)),
    )[0]

  value, grads = jax.jit(jax.value_and_grad(loss))(state.params)
  updates, _ = optimizer.update(grads, state.opt_state, state.params)
  expected = optax.apply_updates(state.params, updates)
  (after, rows) = run(updates=1)
  np.testing.assert_allclose(rows[0]["objective/loss"], value, rtol=1e-5)
  np.testing.assert_allclose(rows[0]["grad/norm"], optax.tree.norm(grads), rtol=1e-4)
  chex.assert_trees_all_close(after.params, expected, atol=1e-7, rtol=1e-5)
  assert after.step == 1


def test_metrics_have_their_names():
  _, (row, _) = run()
  for name in (
    "objective/loss",
    "objective/coefficient_mean",
    "weight/log_w_mean",
    "weight/log_w_std",
    "weight/ess_fraction",
    "kl/behaviour_policy",
    "entropy/mean",
    "grad/norm",
  ):
    assert np.isfinite(row[name]), name
  assert 0 < row["weight/ess_fraction"] <= 1
  assert row[LOG_W].shape == (16, 4)
  np.testing.assert_allclose(row[LOG_W].max(), row["weight/log_w_max"])
  assert 0 < row["entropy/mean"] <= np.log(32) + 1e-5


def test_loss_goes_down_when_a_batch_is_repeated():
  """Behaviour = policy at the start; the surrogate must rise for the sampled advantages."""
  update = jax.jit(
    make_update(SPEC, objectives.make("reinforce"), make_optimizer(OPTIMIZER), UpdateSettings())
  )
  state, losses = fresh_state(), []
  for _ in range(10):
    state, metrics = update(state, example_batch())
    losses.append(float(metrics["objective/loss"]))
  assert losses[-1] < losses[0] - 0.1


def test_state_buffers_are_donated():
  mesh = sharding.make_mesh({"data": -1})
  state = place_state(mesh, SPEC, fresh_state())
  update = make_update(SPEC, objectives.make("vespo"), make_optimizer(OPTIMIZER), UpdateSettings())
  compiled = compile_update(update, mesh, SPEC, state)
  batch = jax.device_put(example_batch(), sharding.batch_sharding(mesh))
  old = state.params["embedding"]
  compiled(state, batch)
  assert old.is_deleted()


def test_one_compilation_for_many_updates():
  mesh = sharding.make_mesh({"data": -1})
  chex.clear_trace_counter()
  update = make_update(SPEC, objectives.make("vespo"), make_optimizer(OPTIMIZER), UpdateSettings())
  state = place_state(mesh, SPEC, fresh_state())
  compiled = compile_update(chex.assert_max_traces(update, n=1), mesh, SPEC, state)
  for seed in range(3):
    batch = jax.device_put(example_batch(seed=seed), sharding.batch_sharding(mesh))
    state, _ = compiled(state, batch)


def test_warm_up_and_weight_decay():
  rate = schedule(OptimizerSettings(learning_rate=1.0, warmup_updates=4))
  np.testing.assert_allclose([rate(i) for i in range(6)], [0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
  assert schedule(OptimizerSettings(learning_rate=0.5))(0) == 0.5
  optimizer = make_optimizer(OptimizerSettings(learning_rate=1.0, weight_decay=0.5))
  params = models.init(SPEC, jax.random.key(0))
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  np.testing.assert_allclose(updates["layers"]["query"], -0.5 * params["layers"]["query"])
  assert not np.asarray(updates["layers"]["attention_norm"]).any()
  assert not np.asarray(updates["final_norm"]).any()


def test_eight_devices_give_the_same_update():
  """data 8, fsdp 8 and data 2 x fsdp 4 against one device; a process of its own."""
  here = Path(__file__).parent
  flags = "--xla_force_host_platform_device_count=8"
  done = subprocess.run(
    [sys.executable, str(here / "eight_devices.py")],
    env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(here)},
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.split() == ["data=8", "fsdp=8", "data=2,fsdp=4"]


def test_meshes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="unknown mesh axis 'model'.*fsdp"):
    sharding.make_mesh({"model": 2})
  with pytest.raises(ValueError, match="needs 3 devices"):
    sharding.make_mesh({"data": 3})
