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


@jax.custom_vjp
def product(x_MI: Array, kernel_IO: Array) -> Array:
  """x @ kernel, [M, I] by [I, O]; differentiable with respect to both, in reverse."""
  return x_MI @ kernel_IO


def _product_forward(x_MI: Array, kernel_IO: Array) -> tuple[Array, tuple[Array, Array]]:
  return x_MI @ kernel_IO, (x_MI, kernel_IO)


def _product_backward(kept: tuple[Array, Array], of_y_MO: Array) -> tuple[Array, Array]:
  x_MI, kernel_IO = kept
  of_x_MI, of_kernel_IO = of_y_MO @ kernel_IO.T, _sum_of_outer(x_MI, of_y_MO)
  return of_x_MI.astype(x_MI.dtype), of_kernel_IO.astype(kernel_IO.dtype)


product.defvjp(_product_forward, _product_backward)


def _sum_of_outer(x_MI: Array, y_MO: Array) -> Array:
  """x^T y, the outer products of all rows: the gradient of a kernel [I, O].

  XLA has fast products for a CPU, but not of a left matrix that lies the other way in memory, which
  takes up to twice as long: there it is turned first.
  """
  return jax.lax.platform_dependent(
    x_MI, y_MO, cpu=lambda x, y: _turned(x) @ y, default=lambda x, y: x.T @ y
  )


_TURNED_COLUMNS = 64  # at a time: of rows that are a power of two apart, a cache holds few


def _turned(x_MI: Array) -> Array:
  """x^T, written to memory; XLA would make the transposition a part of the product."""
  (M, I), held = x_MI.shape, jax.lax.optimization_barrier
  if I % _TURNED_COLUMNS:
    return held(x_MI.T)
  x_JMC = held(x_MI.reshape(M, -1, _TURNED_COLUMNS).transpose(1, 0, 2))
  return held(x_JMC.transpose(0, 2, 1)).reshape(I, M)


def linear(x: Array, kernel: Array | Adapted | Quantized, bias: Array | None = None) -> Array:
  """x @ kernel (+ bias), the kernel stored [in, out]: plain, with a low-rank update, or int8."""
  if isinstance(kernel, Adapted):
    y = product(x, kernel.base) + product(product(x, kernel.a), kernel.b) * kernel.scale
  elif isinstance(kernel, Quantized):  # a scale per output: it can wait until after the product
    y = (x @ kernel.values.astype(x.dtype)) * kernel.scale
  else:
    y = product(x, kernel)
  return y if bias is None else y + bias


def swiglu(x_MD: Array, layer: Params) -> Array:
  """down(silu(gate(x)) * up(x)). Source: Shazeer (2020), arXiv 2002.05202."""
  return linear(jax.nn.silu(linear(x_MD, layer["gate"])) * linear(x_MD, layer["up"]), layer["down"])
