"""Predicted times: from FLOPs, bytes and a machine's peaks. Nothing is faster than this; how much
slower a real machine is, only that machine can say."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from experiments.scale.hardware import Hardware, rows_that_fit
from experiments.scale.hlo import Transfer
from experiments.scale.memory import sampler_memory
from experiments.scale.workload import (
  Sizes,
  Workload,
  executed_flops,
  forward_flops,
  matmul_params,
  model_flops,
  sharded_params,
)
from vespo_jax.models import count
from vespo_jax.models.moe import SLACK
from vespo_jax.sharding import MESH_AXES


@dataclasses.dataclass(frozen=True)
class UpdateTime:
  """Seconds of an update, and of scoring its minibatch by other policies first.

  Attributes:
    compute_s, memory_s, network_s, host_s: if there were nothing but the products, the memory
      traffic, the collectives, the optimizer's state from the host's memory and back there (0 where
      no bandwidth is published).
    scoring_s: of the forward passes of policies that score, like `low_s`.
    mfu: model FLOPs over what the devices could do in `low_s`, scoring left out.
  """

  compute_s: float
  memory_s: float
  network_s: float
  host_s: float
  scoring_s: float
  mfu: float

  @property
  def low_s(self) -> float:
    """The update, if all overlap entirely."""
    return max(self.compute_s, self.memory_s, self.network_s, self.host_s)

  @property
  def high_s(self) -> float:
    """The update, if collectives and the host's bus overlap with nothing."""
    return max(self.compute_s, self.memory_s) + self.network_s + self.host_s


def axis_group(sizes: Sizes, *axes: str) -> tuple[int, ...]:
  """The first group of devices along mesh axes, numbered as `make_mesh` numbers them."""
  shape = [sizes[axis] for axis in MESH_AXES]
  devices = np.arange(int(np.prod(shape))).reshape(shape)
  first = devices[tuple(slice(None) if axis in axes else 0 for axis in MESH_AXES)]
  return tuple(int(device) for device in first.reshape(-1))


def axes_of(group: tuple[int, ...], sizes: Sizes) -> str:
  """The mesh axes along which a group of devices lies, like `fsdp` or `data+fsdp`."""
  shape = [sizes[axis] for axis in MESH_AXES]
  places = np.stack(np.unravel_index(np.array(group), shape))
  varying = [axis for axis, row in zip(MESH_AXES, places, strict=True) if len(set(row)) > 1]
  return "+".join(varying) or "none"


def expected_transfers(work: Workload, sizes: Sizes) -> list[Transfer]:
  """The collectives that the code asks for, as the model has them: what a layout is chosen by
  before anything is compiled. Small ones (norms, masks, sums) are left out."""
  spec, c, m = work.spec, work.compute_bytes, work.micro_batches
  sharded = sharded_params(spec, sizes)
  own = sharded["all"]
  M, L, D = work.local_tokens(sizes), spec.layers, spec.width
  passes = 3 if work.remat == "full" else 2  # of a block whose inputs are gathered
  transfers = []

  def add(kind: str, axis: str, times: float, sent_bytes: float) -> None:
    if sizes[axis] > 1:
      transfers.append(Transfer(kind, axis_group(sizes, axis), times, times * sent_bytes))

  share = lambda axis: (sizes[axis] - 1) / sizes[axis]
  gathered = c * own * (sizes["fsdp"] - 1)  # of all parameters, in one pass
  add("all-gather", "fsdp", 2 * m, gathered)
  add("reduce-scatter", "fsdp", m, gathered)
  add("all-reduce", "data", m, 2 * share("data") * work.width_bytes * own)
  alike = own - sharded["experts"]  # on devices that share the experts out
  add("all-reduce", "expert", m, 2 * share("expert") * work.width_bytes * alike)
  add("all-gather", "tensor", 2 * passes * m * L, share("tensor") * c * M * D)
  add("reduce-scatter", "tensor", 2 * passes * m * L, share("tensor") * c * M * D)
  keys = c * M * sizes["sequence"] * 2 * spec.kv_heads / sizes["tensor"] * spec.head_width
  add("all-gather", "sequence", (passes - 1) * m * L, share("sequence") * keys)
  add("reduce-scatter", "sequence", m * L, share("sequence") * keys)
  add("all-reduce", "sequence", m, 2 * share("sequence") * work.width_bytes * own)
  if spec.experts and sizes["expert"] > spec.active_experts:  # there, and back
    sent = share("expert") * SLACK * c * M * spec.active_experts * D
    add("all-to-all", "expert", 2 * passes * m * L, sent)
  elif spec.experts:
    add("all-gather", "expert", passes * m * L, (sizes["expert"] - 1) * c * M * D)
    add("reduce-scatter", "expert", passes * m * L, (sizes["expert"] - 1) * 4 * M * D)
  return transfers


def network_s(transfers: Iterable[Transfer], hardware: Hardware) -> float:
  """Seconds of collectives one after another at the links' bandwidth; their latency is left out."""
  return sum(transfer.bytes / hardware.bandwidth(transfer.group) for transfer in transfers)


def update_time(
  work: Workload,
  sizes: Sizes,
  hardware: Hardware,
  transfers: Iterable[Transfer],
  flops: float | None = None,
) -> UpdateTime:
  """The time of an update; `flops` are those of one device, the model's where not given."""
  chip, n = hardware.chip, hardware.devices
  peak = chip.flops * (chip.float32_share if work.compute_bytes == 4 else 1.0)
  flops = executed_flops(work) / n if flops is None else flops
  own = sharded_params(work.spec, sizes)
  whole = sharded_params(work.spec, {**sizes, "fsdp": 1, "data": 1})["all"]
  traffic = work.micro_batches * 3 * 2 * work.compute_bytes * whole  # gathered: written, and read
  traffic += 2 * (2 * work.width_bytes + work.state_width) * own["all"]  # the optimizer's pass
  moved = network_s(transfers, hardware)
  compute, memory = flops / peak, traffic / chip.memory_bandwidth
  dense, attention = forward_flops(work)
  forward = (dense + (2 if work.attention == "dense" else 1) * attention) / n / peak
  scoring = work.scored * max(forward, moved / 3)
  state = work.state_width * own["all"] if work.offload else 0.0
  host = 2 * state / chip.host if chip.host else 0.0
  low = max(compute, memory, moved, host)
  return UpdateTime(compute, memory, moved, host, scoring, model_flops(work) / n / chip.flops / low)


@dataclasses.dataclass(frozen=True)
class Sampling:
  """A sampler of `tensor` devices that decodes `rows` sequences at a time.

  Attributes:
    weights, cache: bytes of one device.
    step_s: of one token for each row.
    tokens_per_s: of one device.
  """

  tensor: int
  rows: int
  weights: float
  cache: float
  step_s: float
  tokens_per_s: float


def sampling(work: Workload, hardware: Hardware, tensor: int, most_rows: int) -> Sampling:
  """The predicted sampler; `rows` is 0 if not even one sequence fits. Raises ValueError if the
  parameters do not divide.

  The next weights arrive beside those that are used, so there is room for two. Rows divide over
  the devices, which spread dense layers' tokens too. Every step reads the weights (of the experts
  that some row goes to) and the whole cache, used or not, as `sampler.decode` does. Latency of
  collectives and kernels is left out.
  """
  chip, spec = hardware.chip, work.spec
  weights, row = sampler_memory(work, tensor)
  rows = min(rows_that_fit(chip.memory_bytes, 2 * weights, row), most_rows) // tensor * tensor
  if not rows:
    return Sampling(tensor, 0, weights, 0.0, float("inf"), 0.0)
  blocks, head = matmul_params(spec)
  expert = 3 * spec.width * spec.mlp_width * spec.layers / tensor * work.sampler_bytes
  touched = spec.experts - min(spec.experts, rows * spec.active_experts)
  read = weights - touched * expert + rows * row
  flops = 2 * rows * (blocks + head) / tensor
  sizes = {axis: 1 for axis in MESH_AXES} | {"tensor": tensor}
  # tokens are gathered before both halves of a layer and summed after them, and so are logits
  own = work.sampler_bytes * rows * (2 * (2 * spec.layers + 1) * spec.width + spec.vocab_size)
  moved = (tensor - 1) / tensor * own
  step = max(read / chip.memory_bandwidth, flops / chip.flops)
  step += moved / hardware.bandwidth(axis_group(sizes, "tensor"))
  return Sampling(tensor, rows, weights, rows * row, step, rows / step / tensor)


def best_sampling(work: Workload, hardware: Hardware, most_rows: int) -> Sampling | None:
  """The sampler with the most tokens per second and device; None if none fits."""
  choices = []
  for tensor in (1, 2, 4, 8):
    try:
      choices.append(sampling(work, hardware, tensor, most_rows))
    except ValueError:  # the model does not divide over so many
      continue
  best = max(choices, key=lambda choice: choice.tokens_per_s)
  return best if best.rows else None


def balance(
  work: Workload, learner: UpdateTime, learners: int, sampler: Sampling, mean_tokens: float
) -> float:
  """Devices that sample per device that learns, so that neither waits for the other."""
  tokens = work.prompts * work.samples * mean_tokens
  needed = tokens / (learner.low_s + learner.scoring_s)
  return needed / sampler.tokens_per_s / learners


def publication(work: Workload, hardware: Hardware) -> tuple[float, float]:
  """Bytes of a published set of weights, and seconds to send it once if every learner sends its
  share over the network between nodes or slices."""
  size = work.wire_bytes * count(work.spec)
  return float(size), size / hardware.devices / hardware.chip.slow
