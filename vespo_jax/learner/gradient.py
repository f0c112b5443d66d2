"""The gradient of a minibatch: rewards -> advantages -> weights on grad log pi -> parameters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from vespo_jax import diagnostics, models, objectives
from vespo_jax.advantages import Advantage, zero_variance
from vespo_jax.learner import routing as routing_lib
from vespo_jax.learner.micro_batches import any_nonzero, cut, join, live_first, reorder
from vespo_jax.learner.score_norms import log_score_norms
from vespo_jax.models import Compute, ModelSpec, Routing
from vespo_jax.objectives import Correction, Objective, TokenWeights
from vespo_jax.types import Array, HostArray, Params, TrainBatch

Metrics = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LossSettings:
  """What a loss needs to know beyond the model, the objective and the advantage.

  Attributes:
    temperature: of the policy's softmax; the sampler's own.
    aggregation: one of `objectives.AGGREGATIONS`, or None for the objective's own.
    micro_batches: how many pieces the gradient is accumulated over; it changes memory and speed,
      never the result beyond float32 rounding. It divides the number of prompts.
    compute: how log-probs are computed, and their gradient.
    proximal_denominator: whether the ratio is against the proximal policy, not the behaviour one.
    correction: the rollout correction.
    kl_coefficient, kl_estimator, kl_in_reward: of the KL penalty against the reference policy, per
      token; in the loss, or taken off the reward of the sequence; 0 is off.
    entropy_coefficient: of the entropy bonus, per token; 0 is off.
    proximal_divergence, proximal_step_size: the proximal step adds divergence / step size.
    balance_coefficient, z_coefficient: of the `auxiliary_losses` of a mixture of experts, which a
      dense model does not have; 0 is off.
    replay: whose expert choices the batches hold: `off`, `R2` or `R3` (see `routing`).
  """

  temperature: float = 1.0
  aggregation: str | None = None
  micro_batches: int = 1
  compute: Compute = Compute()
  proximal_denominator: bool = False
  correction: Correction = Correction("none")
  kl_coefficient: float = 0.0
  kl_estimator: str = "k3"
  kl_in_reward: bool = False
  entropy_coefficient: float = 0.0
  proximal_divergence: str = "none"
  proximal_step_size: float = 1.0
  balance_coefficient: float = 0.0
  z_coefficient: float = 0.0
  replay: str = "off"

  @property
  def needs_proximal(self) -> bool:
    """Whether a batch must have the proximal policy's log-probs, or its expert choices."""
    return self.proximal_denominator or self.proximal_divergence != "none" or self.replay == "R2"

  @property
  def needs_reference(self) -> bool:
    """Whether a batch must have the reference policy's log-probs."""
    return self.kl_coefficient != 0


@flax.struct.dataclass
class Evaluated:
  """What one evaluation of the gradient leaves to be measured.

  Attributes:
    loss: the scalar that was differentiated.
    logprobs_PRT, entropy_PRT: of the policy at the sampled tokens.
    advantages_PR: what the rewards became.
    weights: of the whole minibatch, [P, R, ..].
    metrics: of objective and correction.
    routing: the sums of the whole minibatch, without expert ids; None of a dense model.
  """

  loss: Array
  logprobs_PRT: Array
  entropy_PRT: Array
  advantages_PR: Array
  weights: TokenWeights
  metrics: Metrics
  routing: Routing | None = None


@flax.struct.dataclass
class Whole:
  """What a micro-batch must know of its minibatch.

  Attributes:
    normalizer: of the aggregation; None where the micro-batch is the minibatch.
    tokens: scalar, all real tokens.
    load_LE: the experts' load; None where the micro-batch is the minibatch, or none is balanced.
  """

  normalizer: Array | None
  tokens: Array
  load_LE: Array | None


Policy = Callable[[Params], Params]  # what is trained -> the parameters of the model
Gradient = Callable[[Params, TrainBatch, Policy], tuple[Params, Evaluated]]


def itself(params: Params) -> Params:
  """The `Policy` of a model that is trained whole."""
  return params


def make_gradient(
  spec: ModelSpec, objective: Objective, advantage: Advantage, settings: LossSettings
) -> Gradient:
  """Builds `gradient(params, batch, policy) -> (gradients, Evaluated)`, accumulated over
  micro-batches; `policy` makes the model's parameters of the ones that are differentiated.

  Where a micro-batch's gradient depends on the whole minibatch (a batch-wide objective, a
  correction that rejects or normalises, an advantage that needs the policy, a balance of experts
  that are not replayed) a forward pass over all of it comes first; otherwise each micro-batch is
  visited once.

  Groups whose advantages are all 0 (every sample succeeded, or none) are put together, and there is
  no backward pass of a micro-batch whose log-probs have no gradient.
  """
  mode = settings.aggregation or objective.aggregation
  correction = settings.correction
  depends_on_all = objective.batch_wide or correction.normalize or bool(correction.rejections)
  needs_policy = "log_w" in advantage.needs
  balanced = bool(settings.balance_coefficient)

  def weights_of(logprobs_PRT: Array, advantages_PR: Array, batch: TrainBatch):
    proximal = batch.proximal_logprobs_PRT if settings.proximal_denominator else None
    weights, metrics = objectives.token_weights(
      objective,
      policy_logprobs=_rows(logprobs_PRT),
      behaviour_logprobs=_rows(batch.behaviour_logprobs_PRT),
      proximal_logprobs=None if proximal is None else _rows(proximal),
      advantages=advantages_PR.reshape(-1),
      mask=_rows(batch.response_mask_PRT),
      correction=correction,
    )
    P, R, _ = logprobs_PRT.shape
    return jax.tree.map(lambda x: x.reshape(P, R, -1), weights), metrics

  def advantages_of(
    params: Params, batch: TrainBatch, logprobs_PRT: Array | None, policy: Policy
  ) -> Array:
    mask_PRT = batch.response_mask_PRT
    valid_PR = jnp.any(mask_PRT, axis=-1)
    rewards_PR = jnp.asarray(batch.rewards_PR) - _kl_of_rewards(batch, settings)
    extras = {"lengths": jnp.sum(mask_PRT, axis=-1, dtype=jnp.float32)}
    if logprobs_PRT is not None:
      extras["log_w"] = jnp.sum(_log_ratio(logprobs_PRT, batch), axis=-1)
    if "log_score" in advantage.needs:
      needed_PR = valid_PR & ~zero_variance(rewards_PR, valid_PR)[:, None]
      how = (settings.temperature, settings.compute)
      extras["log_score"] = log_score_norms(
        advantage.score, params, spec, batch, needed_PR, *how, policy
      )
    return advantage(rewards_PR, valid_PR, extras)[0]

  def forward(params: Params, batch: TrainBatch) -> tuple[Array, Array, Routing | None]:
    logprobs_PRT, entropy_PRT, routing = models.group_logprobs_routed(
      params, spec, batch, settings.temperature, settings.compute
    )
    if routing is not None:
      routing = dataclasses.replace(routing, expert_ids_LMA=routing.expert_ids_LMA[:, :0])
    return logprobs_PRT, entropy_PRT, routing

  def micro_loss(outputs: tuple[Array, Array, Routing | None], piece: tuple, whole: Whole):
    logprobs_PRT, entropy_PRT, routing = outputs
    batch, advantages_PR, weights = piece
    if weights is None:
      weights, _ = weights_of(logprobs_PRT, advantages_PR, batch)
    weights = jax.tree.map(_rows, weights)
    loss = objectives.weighted_loss(weights, _rows(logprobs_PRT), mode, whole.normalizer)
    extra_PRT = _regularizers(logprobs_PRT, entropy_PRT, batch, settings)
    if extra_PRT is not None:
      total, count = objectives.aggregate(_rows(extra_PRT), weights.mask, mode)
      loss += total / (count if whole.normalizer is None else whole.normalizer)
    if routing is not None:
      load_LE = routing.load_LE if whole.load_LE is None else whole.load_LE
      balance, z = routing_lib.auxiliary_losses(routing, load_LE, whole.tokens)
      loss += settings.balance_coefficient * balance + settings.z_coefficient * z
    return loss

  def gradient(
    params: Params, batch: TrainBatch, policy: Policy = itself
  ) -> tuple[Params, Evaluated]:
    in_pieces = settings.micro_batches > 1
    chosen_PJLA = batch.expert_ids_PJLA
    logprobs_PRT = weights = normalizer = load_LE = None
    chooses = balanced and chosen_PJLA is None
    if needs_policy or (in_pieces and (depends_on_all or chooses)):
      logprobs_PRT, chosen_PJLA = score(policy(params), spec, batch, settings)
    advantages_PR = advantages_of(params, batch, logprobs_PRT, policy)
    if logprobs_PRT is not None:
      weights, _ = weights_of(logprobs_PRT, advantages_PR, batch)
      normalizer = objectives.count(_rows(weights.mask), mode)
    elif in_pieces:
      normalizer = objectives.count(_rows(batch.response_mask_PRT), mode)
    if in_pieces and balanced and chosen_PJLA is not None:
      load_LE = routing_lib.load(chosen_PJLA, batch, spec.experts)
    whole = Whole(normalizer, routing_lib.token_count(batch), load_LE)

    def accumulate(total: Params, piece: tuple):
      outputs, backward = jax.vjp(lambda params: forward(policy(params), piece[0]), params)
      loss, of_outputs = jax.value_and_grad(micro_loss, allow_int=True)(outputs, piece, whole)

      def add(total: Params) -> Params:
        (grads,) = backward(of_outputs)
        if settings.compute.dtype != "float32":
          # XLA for TPU would move the reduction out of this loop, and fails at the cast after it
          grads = jax.lax.optimization_barrier(grads)
        return jax.tree.map(jnp.add, total, grads)

      if in_pieces:
        total = jax.lax.cond(any_nonzero(of_outputs), add, lambda total: total, total)
      else:
        total = add(total)
      return total, (loss, outputs)

    ordered = restored = jnp.asarray
    if in_pieces:
      order_DK = live_first(advantages_PR, settings.micro_batches)
      ordered = lambda x: reorder(x, order_DK)
      restored = lambda x: reorder(x, jnp.argsort(order_DK, axis=1))
    piecewise = lambda x: cut(ordered(x), settings.micro_batches)
    zeros = jax.tree.map(jnp.zeros_like, params)
    pieces = jax.tree.map(piecewise, (batch, advantages_PR, weights))
    grads, (losses, (*outputs, routings)) = jax.lax.scan(accumulate, zeros, pieces)
    logprobs_PRT, entropy_PRT = (restored(join(x)) for x in outputs)
    weights, metrics = weights_of(logprobs_PRT, advantages_PR, batch)
    loss, routing = jax.tree.map(lambda x: jnp.sum(x, axis=0), (losses, routings))
    return grads, Evaluated(
      loss, logprobs_PRT, entropy_PRT, advantages_PR, weights, metrics, routing
    )

  return gradient


def score(
  params: Params, spec: ModelSpec, batch: TrainBatch, settings: LossSettings
) -> tuple[Array, Array | None]:
  """Log-probs of a batch's responses under `params`, float32 [P, R, T], not differentiated, and the
  expert choices behind them, [P, J, L, A] as in `TrainBatch` (None of a dense model)."""

  def one(piece: TrainBatch) -> tuple[Array, Array | None]:
    logprobs_PRT, _, routing = models.group_logprobs_routed(
      params, spec, piece, settings.temperature, settings.compute
    )
    if routing is None:
      return logprobs_PRT, None
    ids_MLA = models.pack_expert_ids(routing.expert_ids_LMA, spec.experts)
    return logprobs_PRT, ids_MLA.reshape(len(logprobs_PRT), -1, *ids_MLA.shape[1:])

  pieces = jax.tree.map(lambda x: cut(x, settings.micro_batches), batch)
  return jax.tree.map(lambda x: jax.lax.stop_gradient(join(x)), jax.lax.map(one, pieces))


def measure(evaluated: Evaluated, batch: TrainBatch, settings: LossSettings) -> Metrics:
  """The metrics of a minibatch: those of `diagnostics`, of its objective, KLs and entropy."""
  mask_BT = _rows(batch.response_mask_PRT)
  logprobs_BT, behaviour_BT = _rows(evaluated.logprobs_PRT), _rows(batch.behaviour_logprobs_PRT)
  denominator_BT = behaviour_BT
  kls = diagnostics.kl_metrics("behaviour_policy", behaviour_BT, logprobs_BT, mask_BT)
  if batch.proximal_logprobs_PRT is not None:
    proximal_BT = _rows(batch.proximal_logprobs_PRT)
    kls |= diagnostics.kl_metrics("proximal_policy", proximal_BT, logprobs_BT, mask_BT)
    denominator_BT = proximal_BT if settings.proximal_denominator else behaviour_BT
  if batch.reference_logprobs_PRT is not None:
    reference_BT = _rows(batch.reference_logprobs_PRT)
    kls |= diagnostics.kl_metrics("policy_reference", logprobs_BT, reference_BT, mask_BT)
  if batch.fresh_mask_PRT is not None:
    kls |= diagnostics.mismatch_metrics(logprobs_BT - behaviour_BT, _rows(batch.fresh_mask_PRT))
  log_correction = evaluated.weights.log_correction
  entropy_BT, tokens = _rows(evaluated.entropy_PRT), jnp.maximum(jnp.sum(mask_BT), 1)
  experts = {}
  if evaluated.routing is not None:
    experts = routing_lib.routing_metrics(evaluated.routing, routing_lib.token_count(batch))
  return {
    "objective/loss": evaluated.loss,
    "entropy/mean": jnp.sum(entropy_BT, where=mask_BT) / tokens,
    **kls,
    **experts,
    **diagnostics.off_policy_metrics(
      logprobs_BT - denominator_BT,
      _rows(evaluated.weights.coefficients),
      evaluated.advantages_PR.reshape(-1),
      mask_BT,
      0.0 if log_correction is None else log_correction.reshape(-1),
      _rows(evaluated.weights.mask),
    ),
    **evaluated.metrics,
  }


def log_ratios(evaluated: Evaluated, batch: TrainBatch) -> Array:
  """[P, R, T]: log policy - log behaviour of every sampled token, 0 elsewhere."""
  return _log_ratio(evaluated.logprobs_PRT, batch)


def _log_ratio(logprobs_PRT: Array, batch: TrainBatch) -> Array:
  return jnp.where(batch.response_mask_PRT, logprobs_PRT - batch.behaviour_logprobs_PRT, 0.0)


def _kl_of_rewards(batch: TrainBatch, settings: LossSettings) -> Array | float:
  """[P, R]: what the KL penalty takes off each reward: of the policy that the trainer takes for the
  sampling one, summed over the response."""
  if not (settings.needs_reference and settings.kl_in_reward):
    return 0.0
  sampling = batch.proximal_logprobs_PRT if settings.proximal_denominator else None
  sampling_PRT = jnp.asarray(batch.behaviour_logprobs_PRT if sampling is None else sampling)
  reference_PRT = _needed(batch.reference_logprobs_PRT, "reference")
  kl_PRT = objectives.kl_estimate(sampling_PRT, reference_PRT, settings.kl_estimator)
  return settings.kl_coefficient * jnp.sum(kl_PRT, axis=-1, where=batch.response_mask_PRT)


def _regularizers(
  logprobs_PRT: Array, entropy_PRT: Array, batch: TrainBatch, settings: LossSettings
) -> Array | None:
  """[P, R, T]: what is added to the loss of every token, or None."""
  mask_PRT = batch.response_mask_PRT  # padding may hold anything
  terms: list[Array] = []
  if settings.needs_reference and not settings.kl_in_reward:
    reference_PRT = jnp.where(mask_PRT, _needed(batch.reference_logprobs_PRT, "reference"), 0.0)
    kl_PRT = objectives.kl_estimate(logprobs_PRT, reference_PRT, settings.kl_estimator)
    terms.append(settings.kl_coefficient * kl_PRT)
  if settings.entropy_coefficient:
    terms.append(-settings.entropy_coefficient * entropy_PRT)
  if settings.proximal_divergence != "none":
    proximal_PRT = jnp.where(mask_PRT, _needed(batch.proximal_logprobs_PRT, "proximal"), 0.0)
    divergence_PRT = objectives.proximal_divergence(
      logprobs_PRT, proximal_PRT, settings.proximal_divergence
    )
    terms.append(divergence_PRT / settings.proximal_step_size)
  return functools.reduce(jnp.add, terms) if terms else None


def _needed(logprobs_PRT: HostArray | None, policy: str) -> Array:
  if logprobs_PRT is None:
    raise ValueError(f"the loss needs the {policy} policy's log-probs, which the batch lacks")
  return jnp.asarray(logprobs_PRT)


def _rows(x_PRT: HostArray) -> Array:
  return jnp.asarray(x_PRT).reshape(-1, x_PRT.shape[-1])
