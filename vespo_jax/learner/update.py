"""One optimizer update as a pure function of (state, batch)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vespo_jax import diagnostics, models, objectives, sharding
from vespo_jax.models import ModelSpec
from vespo_jax.objectives import Objective
from vespo_jax.types import Array, HostArray, Params, TrainBatch, TrainState

LOG_W = "log_w_PR"

Metrics = dict[str, Array]
Update = Callable[[TrainState, TrainBatch], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class UpdateSettings:
  """What an update needs to know beyond the model, the objective and the optimizer.

  Attributes:
    temperature: of the policy's softmax; the sampler's own.
    aggregation: one of `objectives.AGGREGATIONS`, or None for the objective's own.
    micro_batches: how many pieces the gradient is accumulated over; it changes memory and speed,
      never the result beyond float32 rounding. It divides the number of prompts.
  """

  temperature: float = 1.0
  aggregation: str | None = None
  micro_batches: int = 1


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
  """The state before the first update."""
  return TrainState(step=jnp.int32(0), params=params, opt_state=optimizer.init(params))


def make_update(
  spec: ModelSpec,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  settings: UpdateSettings,
) -> Update:
  """Builds `update(state, batch) -> (state, metrics)`; wrap it with `compile_update` to run it.

  Metrics are float32 scalars of the whole minibatch, whatever the micro-batching: `objective/loss`,
  `entropy/mean` (nats per sampled token), `grad/norm` (before clipping), `optimizer/update_norm`,
  the objective's own, and those of `diagnostics.off_policy_metrics`; and one array, `LOG_W`, the
  log importance weight of every sequence, [P, R].
  """
  mode = settings.aggregation or objective.aggregation

  def micro_loss(params: Params, batch: TrainBatch, normalizer: Array):
    logprobs_PRT, entropy_PRT = models.group_logprobs(params, spec, batch, settings.temperature)
    loss, _ = objectives.policy_loss(
      objective,
      policy_logprobs=_rows(logprobs_PRT),
      normalizer=normalizer,
      aggregation=mode,
      **_loss_inputs(batch),
    )
    return loss, (logprobs_PRT, jax.lax.stop_gradient(entropy_PRT))

  def update(state: TrainState, batch: TrainBatch) -> tuple[TrainState, Metrics]:
    normalizer = objectives.count(_rows(batch.response_mask_PRT), mode)

    def accumulate(total: Params, piece: TrainBatch):
      gradient = jax.value_and_grad(micro_loss, has_aux=True)
      (loss, outputs), grads = gradient(state.params, piece, normalizer)
      return jax.tree.map(jnp.add, total, grads), (loss, outputs)

    pieces = jax.tree.map(lambda x: _cut(x, settings.micro_batches), batch)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    grads, (losses, outputs) = jax.lax.scan(accumulate, zeros, pieces)
    logprobs_PRT, entropy_PRT = jax.tree.map(_join, outputs)

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    metrics = {
      "objective/loss": jnp.sum(losses),
      "grad/norm": optax.tree.norm(grads),
      "optimizer/update_norm": optax.tree.norm(updates),
      **_batch_metrics(objective, batch, logprobs_PRT, entropy_PRT),
    }
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

  return update


def compile_update(update: Update, mesh: Mesh, spec: ModelSpec, state: TrainState) -> Update:
  """`jit` of `update` with donated state and the shardings of the rule table.

  `state` may be abstract (`jax.eval_shape`). Place a real state with `place_state`.
  """
  shardings = state_shardings(mesh, spec, state)
  return jax.jit(
    update,
    in_shardings=(shardings, sharding.batch_sharding(mesh)),
    out_shardings=(shardings, sharding.replicated(mesh)),
    donate_argnums=0,
  )


def state_shardings(mesh: Mesh, spec: ModelSpec, state: TrainState) -> Any:
  """The tree of shardings of a `TrainState`."""
  step: Any = sharding.replicated(mesh)  # the same tree, with shardings for leaves
  return dataclasses.replace(
    state,
    step=step,
    params=sharding.param_shardings(mesh, spec),
    opt_state=sharding.like_params(mesh, spec, state.opt_state),
  )


def place_state(mesh: Mesh, spec: ModelSpec, state: TrainState) -> TrainState:
  """The same state, laid out over the mesh."""
  return jax.device_put(state, state_shardings(mesh, spec, state))


def _loss_inputs(batch: TrainBatch) -> dict[str, Any]:
  return {
    "behaviour_logprobs": _rows(batch.behaviour_logprobs_PRT),
    "advantages": batch.advantages_PR.reshape(-1),
    "mask": _rows(batch.response_mask_PRT),
  }


def _batch_metrics(
  objective: Objective, batch: TrainBatch, logprobs_PRT: Array, entropy_PRT: Array
) -> Metrics:
  inputs = _loss_inputs(batch)
  mask_BT, advantages_B = inputs["mask"], inputs["advantages"]
  log_ratio_BT = _rows(logprobs_PRT) - inputs["behaviour_logprobs"]
  coefficients_BT, own = objective(log_ratio_BT, advantages_B, mask_BT)
  entropy = jnp.sum(_rows(entropy_PRT), where=mask_BT) / jnp.maximum(jnp.sum(mask_BT), 1)
  general = diagnostics.off_policy_metrics(log_ratio_BT, coefficients_BT, advantages_B, mask_BT)
  log_w_PR = jnp.sum(log_ratio_BT, axis=1, where=mask_BT).reshape(batch.advantages_PR.shape)
  return {"entropy/mean": entropy, LOG_W: log_w_PR, **general, **own}


def _rows(x_PRT: HostArray) -> Array:
  return jnp.asarray(x_PRT).reshape(-1, x_PRT.shape[-1])


def _cut(x: Array, pieces: int) -> Array:
  """[P, ..] -> [pieces, P / pieces, ..]; piece j takes prompts j, j + pieces, .., so that an axis
  sharded over devices stays sharded within each piece."""
  return jnp.moveaxis(x.reshape(-1, pieces, *x.shape[1:]), 1, 0)


def _join(x: Array) -> Array:
  return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])
