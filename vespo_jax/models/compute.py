"""How log-probs are computed: what changes time and memory, and nothing else beyond rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax

_KEEP_PROJECTIONS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
REMAT: Mapping[str, Callable[[Callable], Callable]] = {
  "none": lambda block: block,
  "layers": lambda block: jax.checkpoint(block, policy=_KEEP_PROJECTIONS),
  "full": jax.checkpoint,
}
ATTENTION: Mapping[str, tuple[str, ...]] = {  # name -> the platforms that have it; (): all
  "dense": (),
  "cudnn": ("gpu",),
  "splash": ("tpu",),
}
DECODE_ATTENTION: Mapping[str, tuple[str, ...]] = {  # likewise, of one token against a cache
  "dense": (),
  "flash": ("gpu",),
  "paged": ("tpu",),
}
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Compute:
  """How the log-probs of a batch are computed.

  Attributes:
    remat: what the backward pass keeps of each block, one of `REMAT`: `none`, everything; `layers`,
      the outputs of its projections; `full`, its input alone.
    attention: one of `ATTENTION`: `dense`, plain products; `cudnn`, NVIDIA's fused kernel, bfloat16
      only; `splash`, the Pallas kernel for TPU.
    dtype: one of `DTYPES`, of parameters as they are used, of activations and of what devices send
      each other; the parameters themselves, their gradients and the optimizer keep their own type.
      Norms, rotations, softmaxes, routers and logits are float32 either way.
    gathered_mb: where tokens are spread over `sequence`, MiB of keys and values of a layer that
      each device gathers at most; more than that goes round the devices in a ring.
  """

  remat: str = "none"
  attention: str = "dense"
  dtype: str = "float32"
  gathered_mb: float = 256.0


PLAIN = Compute()


def check_platform(kernels: Mapping[str, tuple[str, ...]], name: str, platform: str) -> None:
  """Raises ValueError naming what `platform` (cpu, gpu or tpu) has, if it lacks the kernel `name`
  of `ATTENTION` or `DECODE_ATTENTION`."""
  if kernels[name] and platform not in kernels[name]:
    usable = [known for known, places in kernels.items() if not places or platform in places]
    raise ValueError(
      f"{name!r} needs a {' or '.join(kernels[name]).upper()}, and this process computes on "
      f"{platform}, which has {', '.join(map(repr, usable))}"
    )
