"""The numbers of an examination, as lines of text and as a JSON object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from experiments.scale.costs import (
  Sampling,
  UpdateTime,
  axes_of,
  balance,
  expected_transfers,
  network_s,
  publication,
)
from experiments.scale.hardware import GIB, USABLE
from experiments.scale.hlo import Transfer
from experiments.scale.workload import executed_flops, matmul_params, model_flops
from vespo_jax.models import count

if TYPE_CHECKING:
  from experiments.scale.examination import Programs, Subject
  from experiments.scale.search import Layout

PARTS = {  # of `UpdateMemory`, in words
  "params": "parameters",
  "optimizer": "optimizer",
  "grads": "gradients",
  "anchors": "weights of scoring policies",
  "kept": "activations kept",
  "block": "working space of a block",
  "attention": "scores of attention",
  "head": "embedding and head",
}


def lines(
  subject: Subject,
  layout: Layout,
  made: Programs,
  time: UpdateTime,
  sampler: Sampling | None,
  mean_tokens: float,
) -> list[str]:
  """The table, as it is printed."""
  work, hardware = subject.work, subject.hardware
  blocks, head = matmul_params(subject.spec)
  n = hardware.devices
  text = [
    f"{subject.name} on {hardware}: {count(subject.spec) / 1e9:.2f}B parameters, "
    f"{(blocks + head) / 1e9:.2f}B at work on a token",
    f"an update: {work.prompts} prompts x {work.samples} responses, {work.prompt_width} + "
    f"{work.width} tokens wide, {work.tokens / 1e6:.1f}M tokens",
    f"layout: {layout.words}",
    f"  {layout.flags}",
    "",
    *_memory(layout, made, hardware),
    "",
    *_collectives(layout, made, subject),
    "",
    "FLOPs of a device in an update",
    f"  a forward and a backward pass need (model)      {model_flops(work) / n:10.3e}",
    f"  this code makes, recomputation included (model) {executed_flops(work) / n:10.3e}",
  ]
  if made.update_counts is not None:
    text += [
      f"  products in the program (compiler, {made.compiler})        "
      f"{made.update_counts.flops:10.3e}"
    ]
  text += [
    "",
    f"predicted update: {time.low_s:.0f} s (all overlaps) to {time.high_s:.0f} s (collectives do "
    f"not); products {time.compute_s:.0f} s, HBM {time.memory_s:.0f} s, collectives "
    f"{time.network_s:.0f} s" + (f", the host's bus {time.host_s:.0f} s" if time.host_s else ""),
    f"model-FLOPs utilisation at most {time.mfu:.0%}; scoring by other policies takes "
    f"{time.scoring_s:.0f} s more",
    *_sampler(subject, made, time, sampler, mean_tokens),
  ]
  return text


def _memory(layout: Layout, made: Programs, hardware: Any) -> Iterator[str]:
  memory = layout.memory
  yield "GiB of a device in an update                 model" + (
    f"   compiler ({made.compiler})" if made.compiler != "none" else ""
  )
  for field, words in PARTS.items():
    yield f"  {words:36} {getattr(memory, field) / GIB:11.2f}"
  update = made.update
  rows = {
    "arguments: parameters, optimizer, batch": (
      memory.params + (0.0 if memory.offload else memory.optimizer),
      update and update.argument_bytes,
    ),
    "temporaries": (memory.temporary, update and update.temporary_bytes),
    "all of it": (memory.total, update and update.peak_bytes + memory.anchors),
  }
  for words, (modelled, compiled) in rows.items():
    tail = f" {compiled / GIB:14.2f}" if compiled else ""
    yield f"  {words:39} {modelled / GIB:8.2f}{tail}"
  usable = USABLE * hardware.chip.memory_bytes / GIB
  yield f"  {'usable':39} {usable:8.2f}"
  if made.refused:
    yield f"  the compiler refuses: {made.refused}"
  if memory.offload:
    bus = (
      "the time of its bus is not published" if hardware.chip.host is None else "read and written"
    )
    yield f"  (the optimizer's state is in the host's memory between updates: {bus})"
  if made.compiler == "cpu":
    yield "  (a CPU's temporaries: its attention is dense, and its products have copies in float32)"
  if update:
    yield f"  (lowered in {update.lower_s:.0f} s, compiled in {update.compile_s:.0f} s)"


def _collectives(layout: Layout, made: Programs, subject: Subject) -> Iterator[str]:
  sizes = layout.sizes
  found = by_axes(made.update_counts.transfers, sizes) if made.update_counts else {}
  expected = by_axes(expected_transfers(subject.work, sizes), sizes)
  yield "GB that a device sends in an update           model   compiler"
  for key in sorted(found | expected, key=lambda key: -found.get(key, expected.get(key, 0.0))):
    modelled, compiled = expected.get(key, 0.0), found.get(key)
    if max(modelled, compiled or 0.0) < 1e6:
      continue
    tail = f" {compiled / 1e9:10.2f}" if compiled is not None else ""
    yield f"  {key:36} {modelled / 1e9:11.2f}{tail}"


def by_axes(transfers: Any, sizes: Any) -> dict[str, float]:
  """Bytes by `KIND over AXES`."""
  sums: dict[str, float] = {}
  for transfer in transfers:
    key = f"{transfer.kind} over {axes_of(transfer.group, sizes)}"
    sums[key] = sums.get(key, 0.0) + transfer.bytes
  return sums


def _sampler(
  subject: Subject,
  made: Programs,
  time: UpdateTime,
  sampler: Sampling | None,
  mean_tokens: float,
) -> Iterator[str]:
  work, hardware = subject.work, subject.hardware
  yield ""
  if sampler is None:
    yield "no sampler fits: not one sequence beside the weights on up to 8 devices"
    return
  yield (
    f"a sampler: {sampler.tensor} devices, {sampler.rows} rows; of a device "
    f"{sampler.weights / GIB:.1f} GiB of weights and {sampler.cache / GIB:.1f} GiB of cache"
  )
  if made.decode_refused:
    yield f"  the compiler refuses: {made.decode_refused}"
  if made.decode is not None and made.decode_counts is not None:
    per_step = made.decode_counts.transfers
    yield (
      f"  compiled in {made.decode.compile_s:.0f} s; arguments "
      f"{made.decode.argument_bytes / GIB:.1f} GiB, temporaries "
      f"{made.decode.temporary_bytes / GIB:.1f} GiB; collectives of a token "
      f"{sum(t.bytes for t in per_step) / 1e6:.1f} MB, {network_s(per_step, hardware) * 1e6:.0f} us"
    )
  ratio = balance(work, time, hardware.devices, sampler, mean_tokens)
  yield (
    f"predicted token: {1e3 * sampler.step_s:.1f} ms, {sampler.tokens_per_s:.0f} tokens/s of a "
    "device"
  )
  yield (
    f"asynchronous balance at {mean_tokens:.0f} tokens a response: {ratio:.2f} devices sample per "
    f"device that learns ({ratio * hardware.devices:.0f} beside {hardware.devices})"
  )
  size, seconds = publication(work, hardware)
  yield f"publishing weights: {size / 1e9:.1f} GB, at least {seconds:.2f} s between nodes or slices"


def numbers(
  subject: Subject,
  layout: Layout,
  made: Programs,
  time: UpdateTime,
  sampler: Sampling | None,
  mean_tokens: float,
) -> dict[str, Any]:
  """What the lines say, by name; bytes and seconds."""
  update, counts, memory = made.update, made.update_counts, layout.memory
  row: dict[str, Any] = {
    "compiler": made.compiler,
    "dtype": subject.config.policy.dtype,
    "attention": subject.config.policy.attention,
    "memory": {part: getattr(memory, part) for part in (*PARTS, "temporary", "total")},
    "usable": USABLE * subject.hardware.chip.memory_bytes,
    "flops_needed": model_flops(subject.work) / subject.hardware.devices,
    "flops_made": executed_flops(subject.work) / subject.hardware.devices,
    "update_s": [time.low_s, time.high_s],
    "scoring_s": time.scoring_s,
    "mfu": time.mfu,
    "refused": made.refused,
    "decode_refused": made.decode_refused,
    "expected": by_axes(expected_transfers(subject.work, layout.sizes), layout.sizes),
  }
  if update is not None and counts is not None:
    row |= {
      "arguments": update.argument_bytes,
      "temporaries": update.temporary_bytes,
      "peak": update.peak_bytes,
      "compile_s": update.lower_s + update.compile_s,
      "compile_cpu_s": update.cpu_s,
      "flops_compiled": counts.flops,
      "collectives": by_axes(_sizeable(counts.transfers), layout.sizes),
    }
  size, seconds = publication(subject.work, subject.hardware)
  row["publication"] = {"bytes": size, "seconds": seconds}
  if sampler is not None:
    row["sampler"] = {
      "tensor": sampler.tensor,
      "rows": sampler.rows,
      "weights": sampler.weights,
      "cache": sampler.cache,
      "tokens_per_s": sampler.tokens_per_s,
      "ratio": balance(subject.work, time, subject.hardware.devices, sampler, mean_tokens),
    }
    if made.decode is not None:
      row["sampler"]["compile_s"] = made.decode.lower_s + made.decode.compile_s
      row["sampler"]["temporaries"] = made.decode.temporary_bytes
  return row


def _sizeable(transfers: Any) -> list[Transfer]:
  return [transfer for transfer in transfers if transfer.bytes >= 1e6]
