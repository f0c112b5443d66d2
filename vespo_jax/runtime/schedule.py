"""Which weights sample what, and which update consumes it: pure functions of the update number."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class SyncSchedule:
  """N minibatches are rolled out with one set of weights, then trained on one after another.

  Update u (from 0) belongs to rollout batch u // N and consumes its minibatch u % N, sampled with
  the weights of version (u // N) N: its tokens are u % N updates old. The first minibatch of a
  batch is on-policy. Source: arXiv 2602.10693 section 4.1.

  Attributes:
    minibatches: N.
    prompts: of one minibatch.
  """

  minibatches: int
  prompts: int

  def weight_version(self, update: int) -> int:
    """The version of the weights that sample the minibatch of `update`."""
    return update - update % self.minibatches

  def is_boundary(self, update: int) -> bool:
    """Whether `update` starts a rollout batch: nothing sampled is waiting to be trained on."""
    return update % self.minibatches == 0

  def position(self, update: int) -> int:
    """The position in the prompt stream of the first prompt of `update`'s minibatch."""
    return update * self.prompts

  def due(self, every: int, update: int) -> bool:
    """Whether something wanted every `every` updates (0: never) is due after `update` updates.

    It is due at the first boundary at or after each multiple of `every`.
    """
    if not every or update == 0 or not self.is_boundary(update):
      return False
    return update // every > max(update - self.minibatches, 0) // every
