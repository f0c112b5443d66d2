"""One update: what it computes, and what must not change it."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import chex
import example
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from example import OPTIMIZER, SPEC, example_batch, fresh_state, plain_update, run

from vespo_jax import models, objectives, sharding
from vespo_jax.learner.optimizer import OptimizerSettings, make_optimizer, schedule
from vespo_jax.learner.update import PER_SEQUENCE, PER_TOKEN, compile_update, place_state


@pytest.mark.slow
@pytest.mark.parametrize("name,aggregation", [("vespo", None), ("grpo", "token-sum")])
def test_the_number_of_micro_batches_changes_nothing(name, aggregation):
  one = run(name, aggregation=aggregation, micro_batches=1)
  for pieces in (2, 16) if name == "vespo" else (16,):
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
      advantages=jnp.asarray(batch.rewards_PR.reshape(-1)),
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
  sequences = row[PER_SEQUENCE]
  assert all(x.shape == (16, 4) for x in sequences.values())
  valid = example_batch().response_mask_PRT.any(axis=-1)
  np.testing.assert_allclose(sequences["log_w"][valid].max(), row["weight/log_w_max"])
  np.testing.assert_allclose(
    sequences["advantage"], example.masked_rewards(example_batch()), rtol=1e-6
  )
  assert 0 < row["entropy/mean"] <= np.log(32) + 1e-5


def test_the_coefficients_of_the_recorded_groups_are_those_of_the_objective():
  """Against the kernel of VESPO written down: W^k exp(lambda (1 - W)), by sign."""
  batch = example_batch()
  _, metrics = jax.jit(plain_update("vespo", recorded=3))(fresh_state(), batch)
  coefficient_PRT = np.asarray(metrics[PER_TOKEN]["coefficient"])
  log_w_PR = np.asarray(metrics[PER_SEQUENCE]["log_w"][:3], float)
  positive_PR = batch.rewards_PR[:3] > 0
  k, scale = np.where(positive_PR, 2, 3), np.where(positive_PR, 3, 2)
  phi_PR = np.exp(k * log_w_PR + scale * (1 - np.exp(log_w_PR)))
  expected = np.where(batch.response_mask_PRT[:3], phi_PR[..., None], 0.0)
  assert 0 < expected.min(where=expected > 0, initial=1) < 0.9
  np.testing.assert_allclose(coefficient_PRT, expected, rtol=1e-4)
  np.testing.assert_allclose(metrics[PER_TOKEN]["log_ratio"][:3].sum(-1), log_w_PR, rtol=1e-5)


def test_loss_goes_down_when_a_batch_is_repeated():
  """Behaviour = policy at the start; the surrogate must rise for the sampled advantages."""
  update = jax.jit(plain_update("reinforce"))
  state, losses = fresh_state(), []
  for _ in range(10):
    state, metrics = update(state, example_batch())
    losses.append(float(metrics["objective/loss"]))
  assert losses[-1] < losses[0] - 0.1


def test_state_buffers_are_donated():
  mesh = sharding.make_mesh({"data": -1})
  state = place_state(mesh, SPEC, fresh_state())
  update = plain_update("vespo")
  compiled = compile_update(update, mesh, SPEC, state)
  batch = jax.device_put(example_batch(), sharding.batch_sharding(mesh))
  old = state.params["embedding"]
  compiled(state, batch)
  assert old.is_deleted()


def test_one_compilation_for_many_updates():
  mesh = sharding.make_mesh({"data": -1})
  chex.clear_trace_counter()
  update = plain_update("vespo")
  state = place_state(mesh, SPEC, fresh_state())
  compiled = compile_update(chex.assert_max_traces(update, n=1), mesh, SPEC, state)
  for seed in range(3):
    batch = jax.device_put(example_batch(seed=seed), sharding.batch_sharding(mesh))
    state, _ = compiled(state, batch)


def test_warm_up_and_weight_decay():
  rate = schedule(OptimizerSettings(learning_rate=1.0, warmup_updates=4))
  np.testing.assert_allclose([rate(i) for i in range(6)], [0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
  assert schedule(OptimizerSettings(learning_rate=0.5))(0) == 0.5
  falling = OptimizerSettings(learning_rate=2.0, warmup_updates=2, decay="cosine")
  rate = schedule(falling, updates=6)
  half = 1 + np.sqrt(0.5)
  np.testing.assert_allclose(
    [rate(i) for i in range(7)], [1.0, 2.0, 2.0, half, 1.0, 2 - half, 0.0], atol=1e-6
  )
  optimizer = make_optimizer(OptimizerSettings(learning_rate=1.0, weight_decay=0.5))
  params = models.init(SPEC, jax.random.key(0))
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  np.testing.assert_allclose(updates["layers"]["query"], -0.5 * params["layers"]["query"])
  assert not np.asarray(updates["layers"]["attention_norm"]).any()
  assert not np.asarray(updates["final_norm"]).any()


def test_clipping_and_moments_are_those_that_are_set():
  settings = dict(learning_rate=0.1, beta1=0.8, beta2=0.95, epsilon=1e-3)
  optimizer = make_optimizer(OptimizerSettings(**settings, max_grad_norm=2.0))
  params = {"layers": {"w": jnp.zeros((1, 2, 2))}, "b": jnp.zeros(4)}
  state, m, v, moved = optimizer.init(params), 0.0, 0.0, 0.0
  for t, size in enumerate((3.0, 0.5), start=1):  # norms of 6, which is clipped to 2, and of 1
    grads = {"layers": {"w": jnp.zeros((1, 2, 2))}, "b": jnp.full(4, size)}
    updates, state = optimizer.update(grads, state, params)
    g = min(size, 1.0)
    m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
    moved = -0.1 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-3)
    np.testing.assert_allclose(updates["b"], moved, rtol=1e-5)
  unclipped = make_optimizer(OptimizerSettings(**settings, max_grad_norm=0.0))
  _, state = unclipped.update(grads, unclipped.init(params), params)
  np.testing.assert_allclose(state[1][0].mu["b"], 0.2 * 0.5, rtol=1e-6)


@pytest.mark.parametrize(
  "layouts",
  [
    ["fsdp=2,tensor=2,sequence=2"],
    pytest.param(
      ["data=2,fsdp=2,expert=2"]
      + ["data=8", "fsdp=8", "data=2,fsdp=4", "fsdp=4,tensor=2", "sequence=2,fsdp=4", "tensor=8"]
      + ["fsdp=2,expert=4", "tensor=2,expert=2,sequence=2"]
      + ["sequence=4,fsdp=2+ring"],
      marks=pytest.mark.slow,
    ),
  ],
)
def test_eight_devices_give_the_same_update(layouts):
  """Against one device; in a process of its own."""
  here = Path(__file__).parent
  flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
  done = subprocess.run(
    [sys.executable, str(here / "eight_devices.py"), *layouts],
    env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": f"{here.parent.parent}:{here}"},
    capture_output=True,
    text=True,
    timeout=400,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.split() == layouts


def test_meshes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="unknown mesh axis 'model'.*fsdp"):
    sharding.make_mesh({"model": 2})
  with pytest.raises(ValueError, match="needs 3 devices"):
    sharding.make_mesh({"data": 3})


def test_parameters_that_do_not_divide_over_a_mesh_are_refused_by_name():
  mesh = jax.sharding.AbstractMesh((1, 1, 3, 1, 1), sharding.MESH_AXES)
  with pytest.raises(ValueError, match="'embedding'.*'vocab' axis of 32.*3 devices.*'tensor'"):
    sharding.param_shardings(mesh, SPEC)
  few = dataclasses.replace(SPEC, kv_heads=2, head_width=8)  # 16 columns, but of 2 heads
  mesh = jax.sharding.AbstractMesh((1, 1, 4, 1, 1), sharding.MESH_AXES)
  with pytest.raises(ValueError, match="'key'.*'kv_heads' axis of 2.*4 devices.*'tensor'"):
    sharding.param_shardings(mesh, few)
