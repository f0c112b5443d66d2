"""The norm of grad log pi(y) of every sequence, which VCPO's baseline weighs by."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vespo_jax import models
from vespo_jax.learner import routing
from vespo_jax.models import Compute, ModelSpec
from vespo_jax.types import Array, Params, TrainBatch


def log_score_norms(
  kind: str,
  params: Params,
  spec: ModelSpec,
  batch: TrainBatch,
  needed_PR: Array,
  temperature: float,
  compute: Compute,
  policy: Callable[[Params], Params],
) -> Array:
  """Log of the norms, float32 [P, R].

  Args:
    kind: one of `advantages.SCORES`: `exact`, with respect to `params`, at one backward pass for
      each sequence that is needed; or `logit`, with respect to the logits, of one forward pass.
    params: what is trained.
    spec: of the model.
    batch: the sequences; nothing of it but tokens, masks and expert ids is read.
    needed_PR: bool; where False, an `exact` norm is not computed and its log is 0.
    temperature, compute: of the log-probs.
    policy: makes the model's parameters of `params`.
  """
  if kind == "logit":
    squares_PRT = models.group_logit_norms(policy(params), spec, batch, temperature, compute)
    return 0.5 * jnp.log(jnp.sum(squares_PRT, axis=-1, where=batch.response_mask_PRT) + 1e-30)

  def one(sequence: TrainBatch) -> Array:
    def logprob(params: Params) -> Array:
      logprobs_PRT, _ = models.group_logprobs(policy(params), spec, sequence, temperature, compute)
      return jnp.sum(logprobs_PRT, where=sequence.response_mask_PRT)

    squares = jax.tree.map(lambda g: jnp.sum(g**2), jax.grad(logprob)(params))
    return 0.5 * jnp.log(sum(jax.tree.leaves(squares)) + 1e-30)

  def if_needed(sequence_and_needed: tuple[TrainBatch, Array]) -> Array:
    sequence, needed = sequence_and_needed
    return jax.lax.cond(needed, one, lambda _: jnp.float32(0.0), sequence)

  (P, R), S = batch.rewards_PR.shape, batch.prompt_tokens_PS.shape[1]
  ids = batch.expert_ids_PJLA
  own = lambda x: jnp.reshape(x, (P * R, 1, 1, *x.shape[2:]))
  prompt = lambda x: jnp.repeat(x[:, None], R, axis=0)
  sequences = TrainBatch(
    prompt_tokens_PS=prompt(batch.prompt_tokens_PS),
    prompt_mask_PS=prompt(batch.prompt_mask_PS),
    response_tokens_PRT=own(batch.response_tokens_PRT),
    response_mask_PRT=own(batch.response_mask_PRT),
    behaviour_logprobs_PRT=own(batch.behaviour_logprobs_PRT),
    rewards_PR=own(batch.rewards_PR),
    expert_ids_PJLA=None if ids is None else routing.by_sequence(ids, S, R),
  )
  return jax.lax.map(if_needed, (sequences, needed_PR.reshape(-1))).reshape(P, R)
