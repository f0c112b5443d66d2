"""The dense pieces of a block, on tokens flattened to two dimensions [M, D]."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vespo_jax.types import Array, Params


def rms_norm(x: Array, scale: Array, epsilon: float) -> Array:
  """x / rms(x) * scale over the last axis, computed in float32, returned in x's type.

  Source: Zhang & Sennrich (2019), arXiv 1910.07467 eq. 4.
  """
  x32 = x.astype(jnp.float32)
  x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + epsilon)
  return (x32 * scale.astype(jnp.float32)).astype(x.dtype)


def rotary_angles(positions_M: Array, head_width: int, theta: float) -> tuple[Array, Array]:
  """cos and sin of the rotary angles, each float32 [M, 1, H / 2].

  Float32 throughout: bfloat16 cannot tell position 257 from 256. Source: RoFormer, arXiv
  2104.09864 eq. 15.
  """
  exponents = jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width
  angles = positions_M.astype(jnp.float32)[:, None] / theta**exponents
  return jnp.cos(angles)[:, None, :], jnp.sin(angles)[:, None, :]


def rotate(x_MNH: Array, angles: tuple[Array, Array]) -> Array:
  """Rotates the halves (x1, x2) of every head by its position (the Hugging Face convention)."""
  cos, sin = angles
  x1, x2 = jnp.split(x_MNH.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x_MNH.dtype)


def linear(x: Array, kernel: Array, bias: Array | None = None) -> Array:
  """x @ kernel (+ bias), the kernel stored [in, out]."""
  y = x @ kernel
  return y if bias is None else y + bias


def swiglu(x_MD: Array, layer: Params) -> Array:
  """down(silu(gate(x)) * up(x)). Source: Shazeer (2020), arXiv 2002.05202."""
  return linear(jax.nn.silu(linear(x_MD, layer["gate"])) * linear(x_MD, layer["up"]), layer["down"])
