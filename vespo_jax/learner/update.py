"""One optimizer update as a pure function of (state, batch)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vespo_jax import diagnostics, sharding
from vespo_jax.advantages import Advantage
from vespo_jax.learner.gradient import (
  LossSettings,
  Metrics,
  Policy,
  itself,
  log_ratios,
  make_gradient,
  measure,
  score,
)
from vespo_jax.learner.integrators import combine
from vespo_jax.learner.numerics import PER_LEAF, GuardedUpdate, Limits, Update, guarded, leaf_norms
from vespo_jax.models import ModelSpec, lora, partition
from vespo_jax.models.lora import LoraSettings
from vespo_jax.objectives import Objective
from vespo_jax.types import Array, HostArray, Params, TrainBatch, TrainState

PER_SEQUENCE, PER_TOKEN = "per_sequence", "per_token"
NO_LIMITS = Limits()
ESS_SCALINGS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}  # the power of the sample size

Score = Callable[[Params, TrainBatch], tuple[Array, Array | None]]


@dataclasses.dataclass(frozen=True)
class StepSettings:
  """How a gradient becomes a step, beyond the optimizer.

  Attributes:
    integrator: one of `integrators.INTEGRATORS`.
    ess_scaling: VCPO's step size: the optimizer's update, weight decay and all, times
      min(1, ess / ess_base) to the power 1/2 (`sqrt`) or 1 (`linear`), with ess the effective
      sample size fraction of the unclipped W of the whole minibatch; `none` is off. It scales the
      update because Adam's is invariant to the scale of the gradient (arXiv 2602.17616 eq. 5).
    ess_base: the fraction that has a full step.
  """

  integrator: str = "euler"
  ess_scaling: str = "none"
  ess_base: float = 1.0


def init_state(
  params: Params, optimizer: optax.GradientTransformation, frozen: Params | None = None
) -> TrainState:
  """The state before the first update; `params` are adapters where there is a `frozen` model."""
  return TrainState(jnp.int32(0), params, optimizer.init(params), frozen)


def make_update(
  spec: ModelSpec,
  objective: Objective,
  advantage: Advantage,
  optimizer: optax.GradientTransformation,
  loss: LossSettings,
  step: StepSettings,
  adapters: LoraSettings | None = None,
  recorded: int = 0,
) -> Update:
  """Builds `update(state, batch) -> (state, metrics)`; wrap it with `compile_update` to run it.

  With `adapters` these are what is trained, and the model is the state's `frozen` one. With
  `recorded` groups (-1: all) the coefficients of their tokens are returned too.

  Metrics are float32 scalars of the whole minibatch, whatever the micro-batching: `objective/loss`
  (what was differentiated), `entropy/mean` (nats per sampled token), `grad/norm` (before clipping),
  `optimizer/update_norm`, `optimizer/ess_scale` where the step size is scaled, the objective's own,
  KLs, those of `diagnostics.off_policy_metrics` and, of a mixture of experts, of
  `routing.routing_metrics`; and under `PER_SEQUENCE` arrays [P, R]: `log_w` (policy against
  behaviour), `advantage` and `gradient` (sum_t |w_t|, the weights on grad log pi); and under
  `PER_TOKEN` `log_ratio` [P, R, T], 0 where nothing was sampled, and `coefficient` of the first
  `recorded` groups, 0 where nothing was sampled or a token was rejected; and under `PER_LEAF` the
  norm of each parameter's gradient.
  """
  gradient = make_gradient(spec, objective, advantage, loss)

  def update(state: TrainState, batch: TrainBatch) -> tuple[TrainState, Metrics]:
    policy: Policy = itself
    if adapters is not None:
      if state.frozen is None:
        raise ValueError("adapters need a state whose `frozen` is the model they adapt")
      policy = functools.partial(lora.attach, state.frozen, settings=adapters)
    grads, evaluated = gradient(state.params, batch, policy)
    log_ratio_PRT = log_ratios(evaluated, batch)
    log_w_PR = jnp.sum(log_ratio_PRT, axis=-1)
    metrics = measure(evaluated, batch, loss)
    scale: Array | float = 1.0
    if step.ess_scaling != "none":
      valid_PR = jnp.any(batch.response_mask_PRT, axis=-1)
      ess = diagnostics.ess_fraction(log_w_PR.reshape(-1), valid_PR.reshape(-1))
      scale = jnp.minimum(1.0, ess / step.ess_base) ** ESS_SCALINGS[step.ess_scaling]
      metrics["optimizer/ess_scale"] = scale

    def advance(grads: Params, fraction: float) -> Params:
      updates, _ = optimizer.update(grads, state.opt_state, state.params)
      return jax.tree.map(
        lambda p, u: p + (fraction * scale * u).astype(p.dtype), state.params, updates
      )

    grads = combine(
      step.integrator, grads, lambda params: gradient(params, batch, policy)[0], advance
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    if step.ess_scaling != "none":
      updates = jax.tree.map(lambda u: scale * u, updates)
    params: Any = optax.apply_updates(state.params, updates)
    norms = leaf_norms(grads)
    per_token = {"log_ratio": log_ratio_PRT}
    if recorded:
      weights = evaluated.weights
      coefficient_PRT = jnp.where(weights.mask, weights.coefficients, 0.0)
      per_token["coefficient"] = coefficient_PRT[: recorded if recorded > 0 else None]
    metrics |= {
      "grad/norm": jnp.linalg.norm(norms),
      "optimizer/update_norm": optax.tree.norm(updates),
      PER_SEQUENCE: {
        "log_w": log_w_PR,
        "advantage": evaluated.advantages_PR,
        "gradient": jnp.sum(jnp.abs(evaluated.weights.weights), axis=-1),
      },
      PER_TOKEN: per_token,
      PER_LEAF: norms,
    }
    return TrainState(state.step + 1, params, opt_state, state.frozen), metrics

  return update


def compile_update(
  update: Update,
  mesh: Mesh,
  spec: ModelSpec,
  state: TrainState,
  limits: Limits = NO_LIMITS,
  offload: bool = False,
) -> GuardedUpdate:
  """`update(state, batch, skips_left)`, compiled as `jit_update` says.

  `state` may be abstract (`jax.eval_shape`). Place a real state with `place_state`.
  """
  compiled, first = jit_update(update, mesh, spec, state, limits, offload), first_skips(limits)

  def call(
    state: TrainState, batch: TrainBatch, skips_left: HostArray = first
  ) -> tuple[TrainState, Metrics]:
    trained = dataclasses.replace(state, frozen=None)
    after, metrics = compiled(trained, state.frozen, batch, skips_left)
    return dataclasses.replace(after, frozen=state.frozen), metrics

  return call


def jit_update(
  update: Update,
  mesh: Mesh,
  spec: ModelSpec,
  state: TrainState,
  limits: Limits = NO_LIMITS,
  offload: bool = False,
) -> jax.stages.Wrapped:
  """`jit` of `step(trained, frozen, batch, skips_left)`, guarded as `numerics.guarded` says, with
  the shardings of the rule table; `trained`, a state without what is frozen, is donated. With
  `offload` the optimizer's state comes from the host's memory and goes back there, in the program.

  For the most part `compile_update` is what is wanted; this can be lowered ahead of time, with
  abstract arguments.
  """
  guarded_update = guarded(update, limits, lambda metrics: metrics[PER_SEQUENCE]["log_w"])
  shardings = state_shardings(mesh, spec, state, offload)
  opt_shardings = state_shardings(mesh, spec, state).opt_state  # while it is computed with
  trained = dataclasses.replace(shardings, frozen=None)
  replicated = sharding.replicated(mesh)

  def step(state: TrainState, frozen: Params | None, batch: TrainBatch, skips_left: Array):
    state = dataclasses.replace(state, frozen=frozen)
    if offload:
      opt_state = jax.device_put(state.opt_state, opt_shardings)
      state = dataclasses.replace(state, opt_state=opt_state)
    with partition.over(mesh):
      after, metrics = guarded_update(state, batch, skips_left)
    return dataclasses.replace(after, frozen=None), metrics

  return jax.jit(
    step,
    in_shardings=(trained, shardings.frozen, sharding.batch_sharding(mesh), replicated),
    out_shardings=(trained, replicated),
    donate_argnums=0,
  )


def first_skips(limits: Limits) -> np.ndarray:
  """What the first update of a run is given as `skips_left`."""
  return np.array(limits.max_skipped, np.int32)


def compile_score(mesh: Mesh, spec: ModelSpec, loss: LossSettings) -> Score:
  """`jit` of `score(params, batch) -> (logprobs_PRT, expert_ids_PJLA)`, for the proximal and the
  reference policy."""

  def scored(params: Params, batch: TrainBatch) -> tuple[Array, Array | None]:
    with partition.over(mesh):
      return score(params, spec, batch, loss)

  batch = sharding.batch_sharding(mesh)
  params = sharding.param_shardings(mesh, spec)
  return jax.jit(scored, in_shardings=(params, batch), out_shardings=batch)


def compile_score_adapters(
  mesh: Mesh, spec: ModelSpec, loss: LossSettings, frozen: Params, settings: LoraSettings
) -> Score:
  """`compile_score` for adapters of the `frozen` model, attached as the update attaches them."""

  def scored(frozen: Params, adapters: Params, batch: TrainBatch) -> tuple[Array, Array | None]:
    with partition.over(mesh):
      return score(lora.attach(frozen, adapters, settings), spec, batch, loss)

  batch = sharding.batch_sharding(mesh)
  params = sharding.param_shardings(mesh, spec)
  places = (params, sharding.replicated(mesh), batch)
  return functools.partial(jax.jit(scored, in_shardings=places, out_shardings=batch), frozen)


def state_shardings(mesh: Mesh, spec: ModelSpec, state: TrainState, offload: bool = False) -> Any:
  """The tree of shardings of a `TrainState`; with `offload` the optimizer's is in host memory."""
  like_params = lambda tree: sharding.like_params(mesh, spec, tree)  # adapters are replicated
  opt_state = like_params(state.opt_state)
  step: Any = sharding.replicated(mesh)  # the same tree, with shardings for leaves
  return dataclasses.replace(
    state,
    step=step,
    params=like_params(state.params),
    opt_state=sharding.on_host(opt_state, state.opt_state) if offload else opt_state,
    frozen=None if state.frozen is None else like_params(state.frozen),
  )


def place_state(
  mesh: Mesh, spec: ModelSpec, state: TrainState, offload: bool = False
) -> TrainState:
  """The same state, laid out over the mesh as `state_shardings` says."""
  return sharding.place(state, state_shardings(mesh, spec, state, offload))
