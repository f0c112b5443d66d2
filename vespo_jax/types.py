"""The shape alphabet, and the records and pytrees that travel between rooms.

Shape suffixes, one capital letter per axis, used in every array name (`logprobs_BT`):

    B  sequences (rows)         D  model width             V  vocabulary
    T  tokens of a row          F  feed-forward width      E  experts
    S  prompt or cache slots    N  query heads             A  active experts
    P  prompts (groups)         K  key/value heads         L  stacked layers
    R  samples per prompt       G  query heads per kv head C  chunk of tokens
    M  tokens, flattened        H  head width

Four words for the four policies, never mixed: *behaviour* (what sampled the tokens, with its real
numerics), *proximal* (the trainer's own recomputation at the start of a rollout batch), *policy*
(being differentiated), *reference* (the KL anchor).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, Any]  # nested dict of arrays
Array = jax.Array
HostArray = jax.Array | np.ndarray  # an array that may still be on the host
TokenIds = Sequence[int] | np.ndarray
# Which weight version samples each token of a response: (from token, version), ascending from token
# 0; () leaves it to the sampler, which takes the newest there is.
Plan = tuple[tuple[int, int], ...]

FINISH = ("stop", "length", "aborted")
REWARD_STATUS = ("ok", "wrong", "unparsed", "timeout", "error")
REWARD_PARTS = ("correct", "format", "overlong")


@dataclasses.dataclass
class Rollout:
  """One sampled sequence: host arrays, token ids authoritative, never re-tokenised.

  Attributes:
    prompt_ids: int32 [S].
    response_ids: int32 [T], including the stop token when `finish` is `stop`.
    behaviour_logprobs: float32 [T], under the distribution that really sampled the tokens.
    plain_logprobs: float32 [T], log-softmax at temperature 1 of the same forward pass.
    weight_versions: int32 [T], committed updates behind the weights that sampled each token.
    finish: one of `FINISH`.
    group_id: the position of the prompt in the run's prompt stream; the samples of one prompt
      share it.
    sample_seed: what is folded into the run's sampling key for this sequence.
    expert_ids: uint8 or uint16 [S + T, L, A], what the sampler's routers chose for every token of
      prompt and response, where they were asked to say so; the samples of one prompt share the
      choices for it. Those for the last token influence no log-prob.
    task, example_id: which problem this answers.
    reward, reward_status: set by the verifier; `reward_status` is one of `REWARD_STATUS`.
    reward_parts: float64 [3], what a shaped reward is composed of, in the order of `REWARD_PARTS`;
      None where only being correct pays.
    topk_ids, topk_logprobs: int32 and float32 [T, K], the likeliest tokens at each position under
      the distribution of `behaviour_logprobs`, where they were asked for.
  """

  prompt_ids: np.ndarray
  response_ids: np.ndarray
  behaviour_logprobs: np.ndarray
  plain_logprobs: np.ndarray
  weight_versions: np.ndarray
  finish: str
  group_id: int = 0
  sample_seed: int = 0
  expert_ids: np.ndarray | None = None
  task: str = ""
  example_id: int = 0
  reward: float = 0.0
  reward_status: str = ""
  reward_parts: np.ndarray | None = None
  topk_ids: np.ndarray | None = None
  topk_logprobs: np.ndarray | None = None


@flax.struct.dataclass
class TrainBatch:
  """One minibatch in groups: a prompt once, then its R samples.

  Prompts are padded on the left, responses on the right. Every array has P as its first axis, so
  a batch is sharded, and cut into micro-batches, by prompts.

  With `segments_PRT` it is packed rows instead: S = 0, R = 1, and each of the P rows holds whole
  sequences one after another, of which `response_mask_PRT` says what counts.
  """

  prompt_tokens_PS: HostArray  # int32
  prompt_mask_PS: HostArray  # bool, True at real tokens
  response_tokens_PRT: HostArray  # int32
  response_mask_PRT: HostArray  # bool, True at sampled tokens; a row without any is no sequence
  behaviour_logprobs_PRT: HostArray  # float32
  rewards_PR: HostArray  # float32
  # Log-probs under the proximal and the reference policy, float32, where the loss needs them.
  proximal_logprobs_PRT: HostArray | None = None
  reference_logprobs_PRT: HostArray | None = None
  # Tokens sampled by exactly the weights that are about to be updated, bool: they show what the
  # sampler's numerics alone do to the log-probs.
  fresh_mask_PRT: HostArray | None = None
  # Router choices to replay, uint8 or uint16; axis J is the group's prompt, then its samples.
  expert_ids_PJLA: HostArray | None = None
  # Of packed rows, int32: 1, 2, .. for the tokens of the sequences of a row; 0 is padding.
  segments_PRT: HostArray | None = None

  @property
  def real_PJ(self) -> Array:
    """bool: True at real tokens; axis J is the group's prompt, then its samples."""
    own_PRT = self.response_mask_PRT if self.segments_PRT is None else self.segments_PRT != 0
    P, R, T = own_PRT.shape
    return jnp.concatenate([self.prompt_mask_PS, jnp.reshape(own_PRT, (P, R * T))], axis=1)


@flax.struct.dataclass
class TrainState:
  """What an update consumes and returns; `step` counts committed updates (the weight version).

  `params` is what is trained: the model's parameters, or adapters of the model in `frozen`.
  """

  step: Array  # int32 scalar
  params: Params
  opt_state: Any
  frozen: Params | None = None
