"""Weight-only int8: the kernels of a model as whole numbers and one scale per output channel.

A sampler may hold its weights this way, as inference engines do: activations, norms, biases,
routers, embedding and head stay float32, so what is left is a known dose of engine mismatch.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from vespo_jax.models.lora import MODULES
from vespo_jax.types import Array, Params

DTYPES = ("float32", "bfloat16", "int8")  # what `cast` knows
KERNELS = (*MODULES, "expert_gate", "expert_up", "expert_down")


@flax.struct.dataclass
class Quantized:
  """A kernel [.., in, out], about `values * scale`; leading axes are layers and experts.

  Attributes:
    values: int8 in -127 .. 127, symmetric about zero.
    scale: float32 [.., 1, out].
  """

  values: Array
  scale: Array


def quantize(kernel: Array) -> Quantized:
  """The nearest `Quantized` whose largest value in each output channel is exact.

  No element is off by more than half a scale: max |W[:, out]| / 254.
  """
  kernel = kernel.astype(jnp.float32)
  scale = jnp.max(jnp.abs(kernel), axis=-2, keepdims=True) / 127
  values = jnp.round(kernel / jnp.where(scale > 0, scale, 1.0))
  return Quantized(values.astype(jnp.int8), scale)


def dequantize(kernel: Array | Quantized) -> Array:
  """The kernel that is computed with, float32 where it was quantised; a plain one as it is."""
  if not isinstance(kernel, Quantized):
    return kernel
  return kernel.values.astype(jnp.float32) * kernel.scale


@jax.jit
def _quantized(params: Params) -> Params:
  layers = {
    name: quantize(leaf) if name in KERNELS else jnp.asarray(leaf, jnp.float32)
    for name, leaf in params["layers"].items()
  }
  rest = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in params.items() if name != "layers"}
  return {**rest, "layers": layers}


def cast(params: Params, dtype: str) -> Params:
  """The parameters as an engine of this type holds them; `forward` takes the result.

  Args:
    params: of a model, merged where it has adapters.
    dtype: "float32" or "bfloat16", of all leaves and of the computation; or "int8", of the kernels
      of the linear layers and experts, the computation staying float32.

  Raises ValueError for another `dtype`.
  """
  if dtype not in DTYPES:
    raise ValueError(f"unknown type {dtype!r} of weights; known: {', '.join(DTYPES)}")
  if dtype == "int8":
    return _quantized(params)
  return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.dtype(dtype)), params)
