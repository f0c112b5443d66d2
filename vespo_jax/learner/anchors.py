"""The fixed policies a loss is measured against: proximal and reference."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from vespo_jax.learner.update import Score
from vespo_jax.types import Params, TrainBatch


@dataclasses.dataclass
class Anchors:
  """A copy of the parameters of each policy that is needed, and their log-probs of batches.

  Attributes:
    score: the compiled scoring of a batch by a model's parameters.
    reference: parameters of the reference policy, fixed for the run; None if it is not needed.
    needs_proximal: whether the proximal policy is.
    replay_proximal: whether the policy replays the expert choices of the proximal policy.
    score_adapters: the same by adapters, where such are trained: as the update has them, and not
      merged, which a type below float32 would round.
    proximal: what is trained of it, as at the start of the rollout batch.
  """

  score: Score
  reference: Params | None
  needs_proximal: bool
  replay_proximal: bool = False
  score_adapters: Score | None = None
  proximal: Params | None = None

  @property
  def adapters(self) -> Params | None:
    """Those of the proximal policy, if such are trained."""
    return None if self.score_adapters is None else self.proximal

  def start_rollout_batch(self, trained: Params) -> None:
    """Copies what is trained, which an update donates, for the proximal policy; the former one's is
    let go before."""
    if self.needs_proximal:
      self.proximal = None
      self.proximal = copy(trained)

  def complete(self, batch: TrainBatch) -> TrainBatch:
    """The batch with the log-probs that the loss needs; one forward pass for each policy.

    The proximal policy replays the sampler's expert choices where the batch has them, as the policy
    will; the reference policy always makes its own.
    """
    if self.reference is not None:
      logprobs_PRT, _ = self.score(self.reference, dataclasses.replace(batch, expert_ids_PJLA=None))
      batch = dataclasses.replace(batch, reference_logprobs_PRT=logprobs_PRT)
    if self.proximal is not None:
      score = self.score_adapters or self.score
      logprobs_PRT, chosen_PJLA = score(self.proximal, batch)
      batch = dataclasses.replace(batch, proximal_logprobs_PRT=logprobs_PRT)
      if self.replay_proximal:
        batch = dataclasses.replace(batch, expert_ids_PJLA=chosen_PJLA)
    return batch


def copy(params: Params) -> Params:
  """The same parameters in buffers of their own."""
  return jax.tree.map(jnp.copy, params)
