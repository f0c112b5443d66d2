"""Data rewriting: demonstrations in the policy's own words, where it has correct ones.

For each problem: a correct response that the policy samples (`self`); if there is none, one that it
samples when the expert's solution is shown to it as a guide (`guided`); else the expert's solution
(`expert`). What is trained on is always the problem's own prompt: the guide is in no record. (A
guided response may speak of a solution that it was shown; the guide asks for none of that.)
Source: arXiv 2509.15157. The wording of the guide and the numbers of samples are not published.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vespo_jax.learner.intake import ProblemSet, check_reward
from vespo_jax.runtime import Sampler
from vespo_jax.sampler import Order, Settings
from vespo_jax.types import Rollout, TokenIds

TAGS = ("self", "guided", "expert")
_STREAMS = {"self": 2, "guided": 3}  # beside those of training and evaluation
_PLACES = re.compile(r"\{(question|solution)\}")


@dataclasses.dataclass(frozen=True)
class Rewritten:
  """What is to be learned of one problem.

  Attributes:
    example_id: of the problem in its split.
    prompt: what the policy is asked with.
    response: what it is to answer.
    tag: one of `TAGS`.
    expert: the expert's solution; "" if there is none.
    correct: of the policy's unguided samples, the share that was correct.
  """

  example_id: int
  prompt: str
  response: str
  tag: str
  expert: str
  correct: float

  def to_dict(self) -> dict[str, Any]:
    """Plain values: a line of `rewritten.jsonl`."""
    return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Cascade:
  """Rewrites problems, some at a time.

  Attributes:
    sampler: it has weights of version 0, the policy's.
    problems: what is asked, and how answers are judged.
    settings: of the unguided samples.
    guided_settings: of the guided ones.
    guide: what the policy is asked when it is shown a solution: a text with {question} and
      {solution} in it.
    seed: of the sampling.
    timeout_s: the longest wait for the samples of one call.
  """

  sampler: Sampler
  problems: ProblemSet
  settings: Settings
  guided_settings: Settings
  guide: str
  seed: int
  timeout_s: float

  def rewrite(self, indices: Sequence[int]) -> list[Rewritten]:
    """The problems at `indices`, without those that have neither a correct sample nor a solution.

    A response that was cut off at its longest is not kept even if it is correct: it has no end to
    learn. Of several correct ones the first is kept, which is a fair draw from all of them.

    Raises what the sampler's channels raise, and as `check_reward` for the unguided samples, if
    they are of several problems.
    """
    texts = self.problems.solutions(indices)
    sampled = self._sample("self", indices, self.problems.prompts(indices), self.settings)
    if len(indices) > 1:  # of one alone it may be the problem
      check_reward(self.problems, [rollout for group in sampled.values() for rollout in group])
    found = {i: ("self", kept) for i, group in sampled.items() if (kept := self._first(group))}
    shown = {
      index: guided_prompt(self.guide, question, solution)
      for index, (question, solution) in zip(indices, texts, strict=True)
      if index not in found and solution
    }
    if shown:
      prompts = [self.problems.tokenizer.encode_prompt(text) for text in shown.values()]
      groups = self._sample("guided", list(shown), prompts, self.guided_settings)
      found |= {i: ("guided", kept) for i, group in groups.items() if (kept := self._first(group))}
    records = []
    for index, (question, solution) in zip(indices, texts, strict=True):
      tag, response = found.get(index, ("expert", solution))
      if response:
        correct = float(np.mean([r.reward_status == "ok" for r in sampled[index]]))
        records.append(Rewritten(int(index), question, response, tag, solution, correct))
    return records

  def _sample(
    self, tag: str, indices: Sequence[int], prompts: Sequence[TokenIds], settings: Settings
  ) -> dict[int, list[Rollout]]:
    """The graded samples of each problem."""
    stream, samples = _STREAMS[tag], settings.samples_per_prompt
    order_id = int(indices[0]) * len(_STREAMS) + stream - min(_STREAMS.values())
    self.sampler.put(
      Order(
        order_id=order_id,
        weight_version=0,
        seed=self.seed,
        stream=stream,
        prompts=prompts,
        group_ids=indices,
        settings=settings,
        plan=((0, 0),),
      )
    )
    rollouts = self.sampler.get(self.timeout_s, order_id).rollouts
    self.problems.grade(rollouts, np.repeat(np.array(indices), samples))
    return {int(i): rollouts[n * samples : (n + 1) * samples] for n, i in enumerate(indices)}

  def _first(self, group: Sequence[Rollout]) -> str:
    """The text of the first response that is correct and has ended; "" if none is."""
    good = (r.response_ids for r in group if r.reward_status == "ok" and r.finish == "stop")
    return next((text for ids in good if (text := self.problems.tokenizer.decode(ids))), "")


def guided_prompt(guide: str, question: str, solution: str) -> str:
  """The guide with both texts in their places; what they hold is left as it is."""
  return _PLACES.sub(lambda place: {"question": question, "solution": solution}[place[1]], guide)
