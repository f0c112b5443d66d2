"""What a compiled program does, read from the text of its optimised HLO: bytes that each kind of
collective moves, and floating-point operations of matrix products, loops counted as often as they
run.

A compiler's own `cost_analysis` counts the body of a loop once, so a stack of layers as one layer.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "token": 0, "c64": 8, "c128": 16}
_SHAPE = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(
  r"\b(?:calls|to_apply|body|condition|branch_computations|called_computations|true_computation|"
  r"false_computation)=(?:\{([^}]*)\}|%?([\w.\-]+))"
)


@dataclasses.dataclass(frozen=True)
class Transfer:
  """All collectives of one kind within groups of one kind.

  Attributes:
    kind: one of `COLLECTIVES`.
    group: devices that take part together, one group's numbers; the others are alike.
    count: how often they run.
    bytes: what one device sends in all (a ring's share, as `sent` says).
  """

  kind: str
  group: tuple[int, ...]
  count: float
  bytes: float


@dataclasses.dataclass(frozen=True)
class Counts:
  """What one device does in one run of a program.

  Attributes:
    flops: of matrix products, multiplications and additions each counted.
    transfers: the collectives.
    unknown_loops: loops of which the text does not say how often they run; they count once. All
      branches of a condition count, those too that are for the worst case (`models.moe`).
  """

  flops: float
  transfers: tuple[Transfer, ...]
  unknown_loops: int

  def bytes_of(self, kind: str) -> float:
    """Bytes that one device sends in collectives of a kind."""
    return sum(transfer.bytes for transfer in self.transfers if transfer.kind == kind)


def sent(kind: str, result_bytes: float, group: int) -> float:
  """Bytes that each of `group` devices sends in a collective whose result on a device is of
  `result_bytes`, by the ring algorithm, which is optimal (Patarasuk & Yuan 2009,
  doi:10.1016/j.jpdc.2008.09.002)."""
  if group < 2:
    return 0.0
  share = (group - 1) / group
  return {
    "all-gather": share * result_bytes,
    "reduce-scatter": share * result_bytes * group,  # of the operand
    "all-reduce": 2 * share * result_bytes,
    "all-to-all": share * result_bytes,
    "collective-permute": result_bytes,
  }[kind]


def count(text: str) -> Counts:
  """The `Counts` of a program given as optimised, partitioned HLO.

  Raises ValueError if the text has no entry computation.
  """
  computations, entry = _parse(text)
  times, unknown = _times(computations, entry)
  totals: dict[tuple[str, tuple[int, ...]], list[float]] = defaultdict(lambda: [0.0, 0.0])
  flops = 0.0
  for name, instructions in computations.items():
    shapes = {instruction.name: instruction.type for instruction in instructions}
    for instruction in instructions:
      kind = instruction.op.removesuffix("-start")
      if kind in COLLECTIVES:
        group = _group(instruction.rest, kind)
        size = _result_bytes(instruction)
        if name.startswith("all-reduce-scatter"):  # a TPU's fusion, which is one transfer
          kind, size = "reduce-scatter", size / len(group)
        moved = sent(kind, size, len(group))
        total = totals[kind, group]
        total[0] += times[name]
        total[1] += times[name] * moved
      elif instruction.op in ("dot", "convolution", "ragged-dot"):
        flops += times[name] * _product_flops(instruction, shapes)
  transfers = tuple(Transfer(*key, *total) for key, total in sorted(totals.items()) if total[0])
  return Counts(flops, transfers, unknown)


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  type: str
  op: str
  rest: str  # operands and attributes


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
  computations: dict[str, list[_Instruction]] = {}
  entry, current = "", None
  for line in text.splitlines():
    if current is None or not line.startswith(" "):
      found = _COMPUTATION.match(line)
      if found:
        current = found[2]
        computations[current] = []
        entry = current if found[1] else entry
      continue
    found = _INSTRUCTION.match(line)
    if found:
      computations[current].append(_Instruction(*found.groups()))
  if not entry:
    raise ValueError("the text is no HLO module: it has no ENTRY computation")
  return computations, entry


def _times(
  computations: Mapping[str, Sequence[_Instruction]], entry: str
) -> tuple[dict[str, float], int]:
  """How often each computation runs, and the loops of which that is not known."""
  calls: dict[str, list[tuple[str, float]]] = {name: [] for name in computations}
  unknown = 0
  for name, instructions in computations.items():
    for instruction in instructions:
      called = [
        callee.strip().lstrip("%")
        for listed, single in _CALLED.findall(instruction.rest)
        for callee in (listed or single).split(",")
      ]
      trips = 1.0
      if instruction.op == "while":
        found = _trips(instruction, computations)
        unknown += found is None
        trips = 1.0 if found is None else found
      calls[name] += [(callee, trips) for callee in called if callee in computations]
  times: dict[str, float] = dict.fromkeys(computations, 0.0)
  times[entry] = 1.0
  for name in _callers_first(calls, entry):
    for callee, trips in calls[name]:
      times[callee] += times[name] * trips
  return times, unknown


def _trips(loop: _Instruction, computations: Mapping[str, Sequence[_Instruction]]) -> float | None:
  """How often a loop runs, if that is fixed: as XLA annotates it, else by its condition, where
  that is `counter < constant` (the counters of `scan` and `fori_loop` are from 0 by 1)."""
  found = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
  if found:
    return float(found[1])
  named = re.search(r"condition=%?([\w.\-]+)", loop.rest)
  condition = computations.get(named[1], []) if named else []
  constants = {i.name: i.rest for i in condition if i.op == "constant" and i.type.startswith("s32")}
  compare = [i for i in condition if i.op == "compare"]
  if len(compare) != 1 or "direction=LT" not in compare[0].rest:
    return None
  limit = re.match(r"[^,]*?%([\w.\-]+), [^,]*?%([\w.\-]+)\)", compare[0].rest)
  bound = constants.get(limit[2]) if limit else None
  return float(bound.split(")")[0]) if bound else None


def _callers_first(calls: Mapping[str, Sequence[tuple[str, float]]], entry: str) -> list[str]:
  """Every computation after all that call it; calls are never in a circle."""
  order: list[str] = []
  seen = {entry}
  stack = [(entry, iter(calls[entry]))]
  while stack:
    name, rest = stack[-1]
    for callee, _ in rest:
      if callee not in seen:
        seen.add(callee)
        stack.append((callee, iter(calls[callee])))
        break
    else:
      order.append(name)
      stack.pop()
  return order[::-1]


def _shapes(type_text: str) -> list[tuple[str, tuple[int, ...]]]:
  found = _SHAPE.findall(type_text)
  return [(dtype, tuple(int(size) for size in sizes.split(",") if size)) for dtype, sizes in found]


def _size(dtype: str, shape: tuple[int, ...]) -> float:
  width = _BYTES.get(dtype)
  if width is None:
    bits = re.search(r"\d+", dtype)
    width = int(bits[0]) / 8 if bits else 0
  return width * math.prod(shape)


def _result_bytes(instruction: _Instruction) -> float:
  """Bytes of what a collective gives one device; of an asynchronous one, without its operands."""
  sizes = [_size(*shape) for shape in _shapes(instruction.type)]
  if not instruction.op.endswith("-start"):
    return sum(sizes)
  kind = instruction.op.removesuffix("-start")
  if kind == "all-reduce":  # its type is that of the result alone
    return sum(sizes)
  if kind == "collective-permute":  # (operand, result, context, context)
    return sizes[1]
  return sum(sizes[len(sizes) // 2 :])  # (operands, results)


def _group(attributes: str, kind: str) -> tuple[int, ...]:
  """The devices of the first group. Raises ValueError if they are written in an unknown way."""
  if kind == "collective-permute":
    found = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes)
    return (int(found[1]), int(found[2])) if found else (0,)
  found = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
  if found:
    return tuple(int(device) for device in found[1].split(","))
  found = re.search(rf"replica_groups={_IOTA}", attributes)
  if found:
    groups = _iota(*found.groups())
    return tuple(int(device) for device in groups[0])
  found = re.search(
    rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_IOTA_OF_MESH}\))? ?\{{([^}}]*)\}}",
    attributes,
  )
  if not found:
    raise ValueError(f"no groups of devices in {attributes[:200]!r}")
  return _along(*found.groups())


_IOTA = r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"  # a shape, of a range, transposed
_IOTA_OF_MESH = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"


def _iota(shape: str, dims: str, order: str | None) -> np.ndarray:
  devices = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
  devices = devices.transpose(_numbers(order)) if order else devices
  return devices.reshape(_numbers(shape))


def _along(mesh: str, dims: str | None, order: str | None, axes: str) -> tuple[int, ...]:
  """The first group of a mesh written as `'a'=8,'b'=4`, along axes like `'a','b':(2)2`: of the
  latter the second of the factors 2, 2, .. of its size."""
  sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
  along = {
    name: (int(before or 1), int(size or sizes[name]))
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
  }
  total = ",".join([str(math.prod(sizes.values()))])
  devices = _iota(total, dims or total, order)
  shape, index = [], []
  for name, size in sizes.items():
    before, taken = along.get(name, (1, 1))
    shape += [before, taken, size // before // taken]
    index += [0, slice(None), 0]
  return tuple(int(device) for device in devices.reshape(shape)[tuple(index)].reshape(-1))


def _numbers(text: str | None) -> list[int]:
  return [int(number) for number in (text or "").split(",") if number]


def _product_flops(instruction: _Instruction, shapes: Mapping[str, str]) -> float:
  """2 x the result's elements x the elements that each is a sum of."""
  result = math.prod(_shapes(instruction.type)[0][1])
  operands = instruction.rest.split(")")[0]
  typed = _shapes(operands)  # some printers put the types beside the names
  if not typed:
    names = [name.strip().lstrip("%") for name in operands.split(",")]
    typed = list(itertools.chain(*(_shapes(shapes.get(name, "")) for name in names)))
  if not typed:
    return 0.0
  if instruction.op == "convolution":
    return 2.0 * result * _convolved(instruction, typed)
  contracting = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
  sizes = [typed[0][1][int(d)] for d in contracting[1].split(",") if d] if contracting else []
  return 2.0 * result * math.prod(sizes)


def _convolved(instruction: _Instruction, typed: Sequence[tuple[str, tuple[int, ...]]]) -> float:
  """Elements of the kernel that each element of the result is a sum over.

  A TPU's compiler writes batched products as convolutions along a dimension of the batch, whose
  dilation makes all taps but one fall on zeros.
  """
  labels = re.search(r"dim_labels=\w+?_(\w+)->", instruction.rest)
  if labels is None or len(typed) < 2:
    return 0.0
  window = lambda key: re.search(rf"window=\{{[^}}]*\b{key}=([\dx]+)", instruction.rest)
  dilate = window("lhs_dilate")
  dilations = [int(size) for size in dilate[1].split("x")] if dilate else []
  taps = 1.0
  for size, label in zip(typed[1][1], labels[1], strict=True):
    if label == "i":
      taps *= size
    elif label != "o":
      dilation = dilations[int(label)] if dilations else 1
      taps *= -(-size // dilation)
  return taps
