"""The dense pieces of a block, on tokens flattened to two dimensions [M, D]."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vespo_jax.models.lora import Adapted
from vespo_jax.models.quantize import Quantized
from vespo_jax.models.spec import ModelSpec
from vespo_jax.types import Array, Params


def rms_norm(x: Array, scale: Array, epsilon: float) -> Array:
  """x / rms(x) * scale over the last axis, computed in float32, returned in x's type.

  Source: Zhang & Sennrich (2019), arXiv 1910.07467 eq. 4.
  """
  x32 = x.astype(jnp.float32)
  x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + epsilon)
  return (x32 * scale.astype(jnp.float32)).astype(x.dtype)


def rotary_angles(positions_M: Array, spec: ModelSpec) -> tuple[Array, Array]:
  """cos and sin of the rotary angles, each float32 [M, 1, H / 2].

  Float32 throughout: bfloat16 cannot tell position 257 from 256. Source: RoFormer, arXiv
  2104.09864 eq. 15; the scaling of frequencies as in Hugging Face's `modeling_rope_utils`.
  """
  angles = positions_M.astype(jnp.float32)[:, None] * rotary_frequencies(spec)
  return jnp.cos(angles)[:, None, :], jnp.sin(angles)[:, None, :]


def rotary_frequencies(spec: ModelSpec) -> Array:
  """float32 [H / 2]: radians per position, with the spec's scaling."""
  exponents = np.arange(0, spec.head_width, 2, dtype=np.float32) / spec.head_width
  frequencies = (1.0 / spec.rope_theta**exponents).astype(np.float32)
  if spec.rope_scaling == "linear":
    frequencies /= spec.rope_factor
  elif spec.rope_scaling == "llama3":
    turns = spec.rope_context * frequencies / (2 * np.pi)  # over the original context
    low, high = spec.rope_low_factor, spec.rope_high_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    frequencies = kept * frequencies + (1 - kept) * frequencies / spec.rope_factor
  return jnp.asarray(frequencies, jnp.float32)


def rotate(x_MNH: Array, angles: tuple[Array, Array]) -> Array:
  """Rotates the halves (x1, x2) of every head by its position (the Hugging Face convention)."""
  cos, sin = angles
  x1, x2 = jnp.split(x_MNH.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x_MNH.dtype)


def linear(x: Array, kernel: Array | Adapted | Quantized, bias: Array | None = None) -> Array:
  """x @ kernel (+ bias), the kernel stored [in, out]: plain, with a low-rank update, or int8."""
  if isinstance(kernel, Adapted):
    y = x @ kernel.base + (x @ kernel.a) @ kernel.b * kernel.scale
  elif isinstance(kernel, Quantized):  # a scale per output: it can wait until after the product
    y = (x @ kernel.values.astype(x.dtype)) * kernel.scale
  else:
    y = x @ kernel
  return y if bias is None else y + bias


def swiglu(x_MD: Array, layer: Params) -> Array:
  """down(silu(gate(x)) * up(x)). Source: Shazeer (2020), arXiv 2002.05202."""
  return linear(jax.nn.silu(linear(x_MD, layer["gate"])) * linear(x_MD, layer["up"]), layer["down"])
