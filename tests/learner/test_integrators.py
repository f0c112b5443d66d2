"""Integrators on the rotational field of a two-player game, where Euler's method spirals outwards
(arXiv 2010.15040), and inside the update."""

import chex
import example
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.marks import slow_but
from vespo_jax.learner.integrators import INTEGRATORS, combine
from vespo_jax.learner.update import StepSettings

RATE = 0.1


def field(params):
  return {"x": -params["y"], "y": params["x"]}  # the gradient both players descend


def walk(integrator, steps):
  optimizer = optax.sgd(RATE)
  params = {"x": jnp.float32(1.0), "y": jnp.float32(0.0)}
  state = optimizer.init(params)
  for _ in range(steps):

    def advance(grads, fraction, params=params, state=state):
      updates, _ = optimizer.update(grads, state, params)
      return {key: params[key] + fraction * updates[key] for key in params}

    grads = combine(integrator, field(params), field, advance)
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return np.hypot(params["x"], params["y"])


@pytest.mark.parametrize(
  "integrator,growth",  # of the radius per step: |1 + ih + .. | of each method's order
  [
    ("euler", np.sqrt(1 + RATE**2)),
    ("heun", np.sqrt(1 + RATE**4 / 4)),
    ("rk4", np.sqrt(1 - RATE**6 / 72 + RATE**8 / 576)),
  ],
)
def test_a_rotation(integrator, growth):
  np.testing.assert_allclose(walk(integrator, 200), growth**200, rtol=1e-4)


def test_unknown():
  with pytest.raises(ValueError, match="unknown integrator 'midpoint'; known: euler, heun, rk4"):
    combine("midpoint", {}, field, lambda grads, fraction: grads)


@pytest.mark.parametrize("integrator", slow_but(INTEGRATORS, "heun"))
def test_stages_are_gradients_of_the_same_minibatch_at_other_parameters(integrator):
  """The update against the textbook's stages, written out with plain gradients."""
  batch = example.example_batch()
  state = example.fresh_state()
  optimizer = example.make_optimizer(example.OPTIMIZER)
  gradient = example.plain_gradient("vespo")

  def step(grads, fraction):
    updates, _ = optimizer.update(grads, state.opt_state, state.params)
    return example.add(state.params, updates, fraction)

  g1 = gradient(state.params, batch)
  if integrator == "euler":
    mean = g1
  elif integrator == "heun":
    mean = example.add(example.scale(g1, 0.5), gradient(step(g1, 1.0), batch), 0.5)
  else:
    g2 = gradient(step(g1, 0.5), batch)
    g3 = gradient(step(g2, 0.5), batch)
    g4 = gradient(step(g3, 1.0), batch)
    mean = example.scale(g1, 1 / 6)
    for g, weight in ((g2, 1 / 3), (g3, 1 / 3), (g4, 1 / 6)):
      mean = example.add(mean, g, weight)
  after, _ = example.run("vespo", batches=[batch], step=StepSettings(integrator=integrator))
  chex.assert_trees_all_close(after.params, step(mean, 1.0), atol=2e-7, rtol=1e-5)
