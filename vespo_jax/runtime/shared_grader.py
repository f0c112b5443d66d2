"""Grading that the hosts of a run share."""

from __future__ import annotations

import json
from collections.abc import Sequence

from vespo_jax.hosts import Hosts
from vespo_jax.tasks import Example, Grader, Score, share


class SharedGrader:
  """Scores answers that every host has: each grades its share, once, and all get every verdict.

  Args:
    mine: this host's grader; whoever made it closes it.
    hosts: of the run.
  """

  def __init__(self, mine: Grader, hosts: Hosts):
    self._mine, self._hosts = mine, hosts

  def grade(self, examples: Sequence[Example], responses: Sequence[str]) -> list[Score]:
    """The verdict on each response, in order. Raises ChildDied as `Grader.grade`."""
    mine = share(len(responses), self._hosts.index, self._hosts.count)
    scores = self._mine.grade(examples[mine.start : mine.stop], responses[mine.start : mine.stop])
    verdicts = [[score.reward, score.status, score.raw] for score in scores]
    merged = self._hosts.merge(json.dumps(verdicts).encode())
    assert merged is not None, "nobody stops while it grades"
    return [Score(*verdict) for part in merged for verdict in json.loads(part)]
