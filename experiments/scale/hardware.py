"""What a machine can do at most: the only numbers of the tables that neither the config nor a
compiler gives, each with its public source.

Nothing here was measured by this project. Times that follow from it are those of a machine that
reaches its peaks; a real one is slower.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device.

  Attributes:
    flops: per second, of dense bfloat16 products.
    float32_share: of `flops`, with float32 operands at JAX's default precision.
    memory_bytes, memory_bandwidth: of its HBM, bytes and bytes per second.
    node: devices that are joined by the fast links of one node; 0: all of a slice are.
    fast: bytes per second that a device sends in a collective over one mesh axis, by those links.
    slow: bytes per second that a device sends to another node, or out of a slice.
    host: bytes per second between a device and its host's memory, either way; None: not published.
    source: where these numbers stand.
  """

  flops: float
  float32_share: float
  memory_bytes: float
  memory_bandwidth: float
  node: int
  fast: float
  slow: float
  host: float | None
  source: str


CHIPS: Mapping[str, Chip] = {
  # ICI of 1,200 GB/s in both directions over the 6 links of a 3D torus: 100 GB/s one way each, two
  # links to a ring; DCN of 50 Gbit/s a chip. float32 products take one bfloat16 pass by default
  # (https://docs.jax.dev/en/latest/_autosummary/jax.lax.Precision.html).
  "v5p": Chip(
    *(459e12, 1.0, 95 * GIB, 2765e9, 0, 200e9, 6.25e9, None),
    "https://docs.cloud.google.com/tpu/docs/v5p",
  ),
  # ICI of 800 GB/s in both directions over the 4 links of a 2D torus; 4 NICs of 200 Gbit/s to 8
  # chips.
  "v6e": Chip(
    *(918e12, 1.0, 32e9, 1638e9, 0, 200e9, 12.5e9, None),
    "https://docs.cloud.google.com/tpu/docs/v6e",
  ),
  # SXM; dense bfloat16 is half the printed number, which is with sparsity, and TF32, which float32
  # products take by default, half of that. NVLink of 900 GB/s in both directions; in a DGX H100 one
  # ConnectX-7 of 400 Gbit/s to each GPU. PCIe of 128 GB/s in both directions.
  "h100": Chip(
    *(989e12, 0.5, 80e9, 3350e9, 8, 450e9, 50e9, 64e9),
    "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet, "
    "https://docs.nvidia.com/dgx/dgxh100-user-guide",
  ),
  "h200": Chip(
    *(989e12, 0.5, 141e9, 4800e9, 8, 450e9, 50e9, 64e9),
    "https://www.nvidia.com/en-us/data-center/h200",
  ),
}
USABLE = 0.92  # of a device's memory; the rest is the runtime's, and what fragments leave


@dataclasses.dataclass(frozen=True)
class Hardware:
  """So many devices of a kind: a TPU slice, or GPU nodes.

  Raises ValueError for an unknown kind or a number of devices that there is no slice of.
  """

  kind: str
  devices: int

  def __post_init__(self):
    if self.kind not in CHIPS:
      raise ValueError(f"unknown hardware {self.kind!r}; known: {', '.join(CHIPS)}")
    node = self.chip.node
    if self.devices < 1 or (not node and self.devices & (self.devices - 1)):
      raise ValueError(f"{self.kind}: {self.devices} devices; a slice has a power of two of them")
    if node and self.devices > node and self.devices % node:
      raise ValueError(f"{self.kind}: {self.devices} devices are no whole nodes of {node}")

  @classmethod
  def parse(cls, text: str) -> Hardware:
    """Of `KIND:DEVICES`, like `v5p:64`. Raises ValueError."""
    found = re.fullmatch(r"([a-z0-9]+):(\d{1,7})", text)
    if not found:
      raise ValueError(f"hardware {text!r} is not KIND:DEVICES, like v5p:64 or h100:32")
    return cls(found[1], int(found[2]))

  def __str__(self) -> str:
    return f"{self.kind}:{self.devices}"

  @property
  def chip(self) -> Chip:
    """One of the devices."""
    return CHIPS[self.kind]

  @property
  def topology(self) -> str | None:
    """The slice as TPU compilers name it, like `v5p:4x4x4`; None of GPUs."""
    if self.chip.node:
      return None
    sides = [1, 1, 1] if self.kind == "v5p" else [1, 1]
    for _ in range(self.devices.bit_length() - 1):  # the shortest side doubles, from the last on
      shortest = min(sides)
      sides[len(sides) - 1 - sides[::-1].index(shortest)] *= 2
    sides.sort()
    if self.kind == "v5p" and self.devices == 4:
      sides = [2, 2, 1]
    return f"{self.kind}:{'x'.join(map(str, sides))}"

  def bandwidth(self, group: Sequence[int]) -> float:
    """Bytes per second that each device sends in a collective of the devices `group`.

    Devices are numbered node after node. Over several nodes the ring's links between them are
    shared by the devices of the group in a node, each with its own network card.
    """
    chip = self.chip
    if not chip.node or len({device // chip.node for device in group}) < 2:
      return chip.fast
    first = group[0] // chip.node
    rails = sum(device // chip.node == first for device in group)
    return min(chip.fast, rails * chip.slow)


def rows_that_fit(memory: float, fixed: float, row: float) -> int:
  """How many rows of `row` bytes fit in the usable part of `memory` beside `fixed` bytes."""
  return max(math.floor((USABLE * memory - fixed) / row), 0)
