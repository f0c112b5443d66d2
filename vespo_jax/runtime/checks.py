"""Whether a result can be what an order asked for. What cannot is refused, whoever sent it."""

from __future__ import annotations

import numpy as np

from vespo_jax.runtime.links import Fault
from vespo_jax.sampler import Order, Result, Settings
from vespo_jax.types import FINISH, Rollout

_ROUNDING = 1e-4  # nats: a log-softmax in float32 may exceed 0 by less


def check_result(result: Result, order: Order, newest: int, vocab_size: int) -> None:
  """Raises Fault, saying what is wrong, if `result` cannot be the work on `order`.

  Args:
    result: what a worker sent.
    order: one of its unfinished orders.
    newest: the newest weight version that was published.
    vocab_size: of the policy.
  """
  samples = order.settings.samples_per_prompt
  expected = len(order.prompts) * samples
  if len(result.rollouts) != expected:
    raise Fault("malformed", f"{len(result.rollouts)} rollouts instead of {expected}")
  for row, rollout in enumerate(result.rollouts):
    try:
      _check_identity(rollout, order, row)
      _check_arrays(rollout, order.settings.max_new_tokens, vocab_size)
      _check_optional(rollout, order.settings)
      _check_versions(rollout.weight_versions, order, newest)
    except Fault as fault:
      raise Fault(fault.kind, f"rollout {row}: {fault}") from None


def _check_identity(rollout: Rollout, order: Order, row: int) -> None:
  samples = order.settings.samples_per_prompt
  group_id = order.group_ids[row // samples]
  if not np.array_equal(rollout.prompt_ids, order.prompts[row // samples]):
    raise Fault("malformed", "it answers another prompt")
  seed = group_id * samples + row % samples
  if (rollout.group_id, rollout.sample_seed) != (group_id, seed):
    raise Fault(
      "malformed",
      f"group {rollout.group_id} and seed {rollout.sample_seed} instead of {group_id} and {seed}",
    )


def _check_arrays(rollout: Rollout, max_new_tokens: int, vocab_size: int) -> None:
  T = len(rollout.response_ids)
  if rollout.finish not in FINISH:
    raise Fault("malformed", f"finish {rollout.finish!r}")
  if not (1 <= T <= max_new_tokens or T == 0 and rollout.finish == "aborted"):
    raise Fault("malformed", f"{T} tokens where 1 to {max_new_tokens} were asked for")
  ids = {"response_ids": rollout.response_ids, "topk_ids": rollout.topk_ids}
  logprobs = {
    "behaviour_logprobs": rollout.behaviour_logprobs,
    "plain_logprobs": rollout.plain_logprobs,
    "topk_logprobs": rollout.topk_logprobs,
  }
  for field, values in {**ids, **logprobs, "weight_versions": rollout.weight_versions}.items():
    if values is not None and len(values) != T:
      raise Fault("malformed", f"{len(values)} {field} for {T} tokens")
  if rollout.expert_ids is not None and len(rollout.expert_ids) != len(rollout.prompt_ids) + T:
    raise Fault("malformed", f"{len(rollout.expert_ids)} expert_ids")
  for field, values in ids.items():
    if values is not None and np.any((values < 0) | (values >= vocab_size)):
      raise Fault("malformed", f"{field} outside the vocabulary of {vocab_size}")
  for field, values in logprobs.items():
    if values is None:
      continue
    if not np.all(np.isfinite(values)):
      raise Fault("non_finite", f"{field} are not finite")
    if np.any(values > _ROUNDING):
      raise Fault("malformed", f"{field} above 0: {values.max():g}")


def _check_optional(rollout: Rollout, settings: Settings) -> None:
  """What was not asked for is refused, and what was must be there, of the right type and axes."""
  for field, asked, kinds, ndim in (
    ("topk_ids", settings.topk_logprobs > 0, "iu", 2),
    ("topk_logprobs", settings.topk_logprobs > 0, "f", 2),
    ("expert_ids", settings.expert_ids, "iu", 3),
  ):
    values = getattr(rollout, field)
    if values is None and asked and len(rollout.response_ids):
      raise Fault("malformed", f"{field} were asked for and not sent")
    if values is not None and not asked:
      raise Fault("malformed", f"{field} were sent and not asked for")
    if values is not None and (values.dtype.kind not in kinds or values.ndim != ndim):
      raise Fault("malformed", f"{field} of type {values.dtype} and shape {values.shape}")


def _check_versions(versions_T: np.ndarray, order: Order, newest: int) -> None:
  if order.plan:
    starts, versions = np.transpose(order.plan)
    planned_T = versions[np.searchsorted(starts, np.arange(len(versions_T)), "right") - 1]
    if not np.array_equal(versions_T, planned_T):
      raise Fault("malformed", f"weight versions other than the plan {order.plan}")
  elif np.any(versions_T < order.weight_version):
    raise Fault("stale", f"weight version {versions_T.min()} is below {order.weight_version}")
  elif np.any(versions_T > newest):
    raise Fault(
      "malformed", f"weight version {versions_T.max()} is above the newest, which is {newest}"
    )
