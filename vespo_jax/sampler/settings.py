"""How to sample: plain values that travel as JSON."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of one generation call; hashable.

  Attributes:
    max_new_tokens: most tokens of a response, the stop token included.
    temperature: of the softmax that is sampled; 0 is greedy.
    samples_per_prompt: R.
    stop_ids: token ids that end a response.
    top_k: sample among the k likeliest tokens; 0 is off.
    top_p: sample among the likeliest tokens that hold this much probability; 1 is off.
    expert_ids: report what the routers of a mixture of experts chose.
    min_p: sample among tokens at least this fraction as likely as the likeliest; 0 is off.
    stop_strings: a response ends with the token after which its text contains one of them.
    topk_logprobs: K, report the K likeliest tokens of every distribution that was sampled; 0: none.

  Raises:
    ValueError: naming the field that is out of range.
  """

  max_new_tokens: int
  temperature: float = 1.0
  samples_per_prompt: int = 1
  stop_ids: tuple[int, ...] = ()
  top_k: int = 0
  top_p: float = 1.0
  expert_ids: bool = False
  min_p: float = 0.0
  stop_strings: tuple[str, ...] = ()
  topk_logprobs: int = 0

  def __post_init__(self):
    object.__setattr__(self, "stop_ids", tuple(self.stop_ids))
    object.__setattr__(self, "stop_strings", tuple(self.stop_strings))
    for field, good in (
      ("max_new_tokens", self.max_new_tokens >= 1),
      ("temperature", self.temperature == 0 or 1e-6 <= self.temperature < math.inf),
      ("samples_per_prompt", self.samples_per_prompt >= 1),
      ("top_k", self.top_k >= 0),
      ("top_p", 0 < self.top_p <= 1),
      ("min_p", 0 <= self.min_p <= 1),
      ("stop_strings", all(self.stop_strings)),
      ("topk_logprobs", self.topk_logprobs >= 0),
    ):
      if not good:
        raise ValueError(f"sampler setting {field}={getattr(self, field)} is out of range")

  def compiled(self) -> Settings:
    """What the compiled program depends on: settings that only the host reads, at fixed values."""
    return dataclasses.replace(self, max_new_tokens=1, samples_per_prompt=1, stop_strings=())
