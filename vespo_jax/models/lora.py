"""LoRA: a frozen model, and a trainable low-rank update of some of its linear layers.

adapters = lora.init(spec, key, settings)              # what is trained
params = lora.attach(base, adapters, settings)         # what `forward` takes: x W + s (x A) B
params = lora.merge(base, adapters, settings)          # plain arrays: W + s A B
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

import flax.struct
import jax
import jax.numpy as jnp

from vespo_jax.models.params import ParamInfo, describe
from vespo_jax.models.spec import ModelSpec
from vespo_jax.types import Array, Params

# Hugging Face's names of the linear layers, which targets are matched against.
MODULES: Mapping[str, str] = {
  "query": "self_attn.q_proj",
  "key": "self_attn.k_proj",
  "value": "self_attn.v_proj",
  "output": "self_attn.o_proj",
  "gate": "mlp.gate_proj",
  "up": "mlp.up_proj",
  "down": "mlp.down_proj",
}


@dataclasses.dataclass(frozen=True)
class LoraSettings:
  """Settings of the adapters.

  Attributes:
    rank: r.
    alpha: the update is scaled by alpha / r.
    targets: a regular expression; layers whose name (a value of `MODULES`) it is found in are
      adapted, in every block.
  """

  rank: int
  alpha: float
  targets: str = "."

  @property
  def scale(self) -> float:
    """alpha / r."""
    return self.alpha / self.rank


@flax.struct.dataclass
class Adapted:
  """A kernel W [in, out] and its update A [in, r], B [r, out]; all may be stacked over layers."""

  base: Array
  a: Array
  b: Array
  scale: float = flax.struct.field(pytree_node=False)


def targeted(spec: ModelSpec, settings: LoraSettings) -> dict[str, ParamInfo]:
  """The adapted kernels by our names. Raises ValueError naming the layers there are, if none is."""
  layers = describe(spec)["layers"]
  known = {key: name for key, name in MODULES.items() if key in layers}
  found = {key: layers[key] for key, name in known.items() if re.search(settings.targets, name)}
  if not found:
    raise ValueError(
      f"targets={settings.targets!r} is found in none of {', '.join(known.values())}"
    )
  return found


def init(spec: ModelSpec, key: Array, settings: LoraSettings) -> Params:
  """Adapters that change nothing yet: A uniform within +-1 / sqrt(in), B zero, float32.

  Returns `{"layers": {name: {"a": [L, in, r], "b": [L, r, out]}}}`. Raises ValueError if no layer
  is targeted. Source: Hu et al. (arXiv 2106.09685) section 4.1; the range is that of PEFT.
  """
  adapters = {}
  for i, (name, info) in enumerate(targeted(spec, settings).items()):
    layers, width_in, width_out = info.shape
    bound = width_in**-0.5
    shape = (layers, width_in, settings.rank)
    adapters[name] = {
      "a": jax.random.uniform(jax.random.fold_in(key, i), shape, minval=-bound, maxval=bound),
      "b": jnp.zeros((layers, settings.rank, width_out)),
    }
  return {"layers": adapters}


def attach(base: Params, adapters: Params, settings: LoraSettings) -> Params:
  """Parameters for `forward`, nothing copied; differentiate with respect to `adapters`.

  Raises ValueError if they are of another number of layers.
  """

  def adapted(kernel: Array, adapter: Params) -> Adapted:
    a, b = (adapter[key].astype(kernel.dtype) for key in ("a", "b"))
    return Adapted(kernel, a, b, settings.scale)

  return _replace(base, adapters, adapted)


def merge(base: Params, adapters: Params, settings: LoraSettings) -> Params:
  """The adapted model as plain parameters, in the base's types, the sum taken in float32.

  Raises ValueError if the adapters are of another number of layers.
  """

  def merged(kernel: Array, adapter: Params) -> Array:
    update = jnp.einsum("lir,lro->lio", adapter["a"], adapter["b"], precision="highest")
    return (kernel.astype(jnp.float32) + settings.scale * update).astype(kernel.dtype)

  return _replace(base, adapters, merged)


def _replace(base: Params, adapters: Params, replace: Callable[[Array, Params], object]) -> Params:
  changed = {}
  for name, adapter in adapters["layers"].items():
    kernel, layers = base["layers"][name], len(adapter["a"])
    if len(kernel) != layers:
      raise ValueError(f"adapters of {layers} layers do not fit a model of {len(kernel)}: {name}")
    changed[name] = replace(kernel, adapter)
  return {**base, "layers": {**base["layers"], **changed}}
