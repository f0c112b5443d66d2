"""Attention by fused kernels, against the dense reference: values and gradients of both layouts."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vespo_jax.models import Compute, check_platform, compute, fused, layouts

P, S, R, T = 2, 5, 3, 4
N, K, H = 4, 2, 8


@pytest.fixture(params=["cudnn", "splash"])
def kernel(request, monkeypatch):
  """The kernel's name; here it is interpreted, or the library's own reference stands for it."""
  make = functools.partial(fused.splash_lib.make_splash_mha, interpret=True)
  monkeypatch.setattr(fused.splash_lib, "make_splash_mha", make)
  attend = jax.nn.dot_product_attention
  by_xla = lambda *arrays, implementation, **more: attend(*arrays, implementation="xla", **more)
  monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
  return request.param


def compare(of_layout, real_M, kernel):
  """That a kernel mixes, and differentiates, what real tokens see as plain products do."""
  rng = np.random.default_rng(0)
  draw = lambda heads: jnp.asarray(rng.normal(size=(real_M.size, heads, H)), jnp.float32)
  arrays = (draw(N), draw(K), draw(K))
  weights = jnp.asarray(rng.normal(size=(real_M.size, N * H))) * real_M.reshape(-1, 1)

  def total(how, *arrays):
    mixed = of_layout(how)(*arrays) * real_M.reshape(-1, 1)
    return jnp.sum(jnp.sin(mixed) * weights), mixed

  run = jax.jit(jax.value_and_grad(total, argnums=(1, 2, 3), has_aux=True), static_argnums=0)
  chex.assert_trees_all_close(
    run(Compute(attention=kernel), *arrays), run(Compute(), *arrays), atol=2e-5, rtol=1e-4
  )


def test_groups_are_attended_to_as_by_plain_products(kernel):
  mask_PS = np.arange(S)[::-1] < np.array([[5], [2]])
  real_PJ = np.pad(mask_PS, [(0, 0), (0, R * T)], constant_values=True)
  of_groups = lambda how: layouts.of_groups(jnp.asarray(mask_PS), R, T, how)
  compare(of_groups, real_PJ, kernel)


def test_packed_rows_are_attended_to_as_by_plain_products(kernel):
  segments_BT = np.array([[0, 1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 2, 3, 3]])
  of_rows = lambda how: layouts.of_rows(jnp.asarray(segments_BT), how)
  compare(of_rows, segments_BT != 0, kernel)


def test_a_tree_is_what_its_rows_say():
  tree = fused.Tree(2, 2, 2)
  places = np.arange(6)
  expected = [
    [1, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0],
    [1, 1, 1, 0, 0, 0],
    [1, 1, 1, 1, 0, 0],
    [1, 1, 0, 0, 1, 0],
    [1, 1, 0, 0, 1, 1],
  ]
  np.testing.assert_array_equal(tree.sees(places[:, None], places[None]), expected)


def test_splash_visits_the_blocks_that_are_not_empty():
  """Of a prompt of two blocks and four samples of two: the samples do not look at each other."""
  tree = fused.Tree(256, 4, 256)
  mask = fused.splash_lib.MultiHeadMask([fused._TreeMask(tree)])
  sizes = fused.splash_lib.BlockSizes(block_q=128, block_kv=128)
  kernel = fused.splash_lib.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)
  visited = np.asarray(kernel.fwd_mask_info.block_mask)
  assert np.sum(visited > 0) == 3 + 4 * (2 * 2 + 3)
  assert kernel.fwd_mask_info.partial_mask_blocks.shape[0] == 1  # one triangle, stored once


def test_a_platform_without_the_kernel_is_told_what_it_has():
  check_platform(compute.ATTENTION, "dense", "cpu")
  check_platform(compute.ATTENTION, "splash", "tpu")
  with pytest.raises(
    ValueError, match="'splash' needs a TPU, .* on gpu, which has 'dense', 'cudnn'"
  ):
    check_platform(compute.ATTENTION, "splash", "gpu")
