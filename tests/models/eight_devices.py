"""Run by test_spread.py in a process with eight fake devices; says what agrees."""

import functools
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import PartitionSpec

from vespo_jax import models, sharding
from vespo_jax.models import fused, layouts, lora, moe, partition, ring
from vespo_jax.types import TrainBatch

assert jax.device_count() == 8, "start me with XLA_FLAGS=--xla_force_host_platform_device_count=8"
P, R, S, T = 2, 3, 16, 8
rng = np.random.default_rng(0)
MASK_PS = np.arange(S)[::-1] < np.array(
  [[16], [5]]
)  # a prompt that several devices know nothing of


def ring_of_eight():
  """Values and gradients of both layouts' parts, against one device that has all tokens."""
  ring.QUERY_BLOCK = 1  # two pieces of a prompt's tokens on each device
  N, K, H = 4, 2, 8
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  shapes = [(P, S, n, H) for n in (N, K, K)] + [(P * R, T, n, H) for n in (N, K, K)]
  arrays = tuple(draw(*shape) for shape in shapes)
  weights = (draw(P, S, N * H) * MASK_PS[..., None], draw(P * R, T, N * H))

  def groups(compute, *arrays):
    """Attention of tokens as the transformer has them, and taken apart again."""
    mask_PS = partition.gather(jnp.asarray(arrays[-1]), "sequence", 1)
    here, width = arrays[0].shape[1], arrays[3].shape[1]
    flat = lambda x, y: jnp.concatenate([x, y.reshape(P, -1, *y.shape[2:])], axis=1)
    tokens = [flat(x, y) for x, y in zip(arrays[:3], arrays[3:6], strict=True)]
    attend = layouts.of_groups(mask_PS, R, width, compute)
    mixed = attend(*(x.reshape(-1, *x.shape[2:]) for x in tokens))
    return layouts.split(mixed, P, here, width)

  mesh = sharding.make_mesh({"sequence": 8})
  spec = PartitionSpec(None, "sequence")

  def gradient(compute, spread):
    local = lambda *arrays: groups(compute, *arrays)
    mix = jax.shard_map(
      local, mesh=mesh, in_specs=(spec,) * 7, out_specs=(spec, spec), check_vma=False
    )

    def total(*arrays):
      mixed = (mix if spread else local)(*arrays, MASK_PS)
      return sum(jnp.sum(jnp.sin(x) * w) for x, w in zip(mixed, weights, strict=True)), mixed[1]

    return jax.jit(jax.value_and_grad(total, argnums=range(6), has_aux=True))

  round_, gathered = models.Compute(gathered_mb=0.0), models.Compute()
  expected = jax.device_get(gradient(gathered, False)(*arrays))
  chex.assert_trees_all_close(
    jax.device_get(gradient(round_, True)(*arrays)), expected, atol=2e-5, rtol=1e-4
  )
  moved = lambda compute, name: [
    line
    for line in gradient(compute, True).lower(*arrays).as_text().splitlines()
    if f"stablehlo.{name}" in line and "i1>" not in line  # but for the mask
  ]
  assert not moved(round_, "all_gather") and moved(round_, "collective_permute")
  assert moved(gathered, "all_gather") and not moved(gathered, "collective_permute")


def tokens_are_sent_to_their_experts():
  """Values and gradients, however unevenly experts are chosen, against one device that has all."""
  M, A, E, D, F = 96, 2, 16, 8, 12
  mesh = sharding.make_mesh({"expert": 8})
  by_expert = PartitionSpec("expert")
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  layer = {"expert_gate": draw(E, D, F), "expert_up": draw(E, D, F), "expert_down": draw(E, F, D)}
  x_MD, weights_MA, cotangent_MD = draw(M, D), draw(M, A), draw(M, D)

  def gradient(experts):
    total = lambda x_MD, layer, weights_MA, ids_MA: jnp.sum(
      experts(x_MD, layer, ids_MA, weights_MA) * cotangent_MD
    )
    return jax.jit(jax.value_and_grad(total, argnums=range(3)))

  spread = gradient(
    jax.shard_map(moe._experts, mesh=mesh, in_specs=by_expert, out_specs=by_expert, check_vma=False)
  )
  alone = gradient(moe._experts)
  ids_MA = np.array([rng.permutation(E)[:A] for _ in range(M)], np.int32)
  half = np.where(np.arange(M)[:, None] < M // 2, ids_MA, E)  # the rest is padding
  for chosen in (ids_MA, ids_MA % 2, np.where(ids_MA < 6, ids_MA, 5), half, np.full_like(half, E)):
    expected = jax.device_get(alone(x_MD, layer, weights_MA, chosen))
    got = jax.device_get(spread(x_MD, layer, weights_MA, chosen))
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-4)
  assert not np.any(expected[1][0])  # no token has an expert
  text = spread.lower(x_MD, layer, weights_MA, ids_MA).as_text()
  assert "all_to_all" in text and "all_gather" not in text


def random_batch():
  shape = (P, R, T)
  return TrainBatch(
    prompt_tokens_PS=rng.integers(0, 32, (P, S)),
    prompt_mask_PS=MASK_PS,
    response_tokens_PRT=rng.integers(0, 32, shape),
    response_mask_PRT=np.ones(shape, bool),
    behaviour_logprobs_PRT=np.zeros(shape, np.float32),
    rewards_PR=np.zeros(shape[:2], np.float32),
  )


def kernels_in_a_spread_program():
  """They are lowered where parameters and prompts are spread, forward and backward."""
  fused_attention_stablehlo.check_cudnn_version = lambda: 91_000  # here there is none
  spec = models.ModelSpec(
    vocab_size=32, width=16, layers=1, heads=8, kv_heads=4, head_width=64, mlp_width=16
  )
  mesh, batch = sharding.make_mesh({"fsdp": 2, "tensor": 4}), random_batch()
  for platform, attention, program in (
    ("tpu", "splash", "splash_mha_dkv"),
    ("cuda", "cudnn", "fmhaSoftmaxBackward"),
  ):
    compute = models.Compute(attention=attention, dtype="bfloat16")

    def total(params, compute=compute):
      with partition.over(mesh):
        return jnp.sum(models.group_logprobs(params, spec, batch, compute=compute)[0])

    traced = jax.jit(jax.grad(total)).trace(models.abstract(spec))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert program in text and "xbf16>" in text and "stablehlo.reduce_scatter" in text


def adapters_over_tensor():
  """The gradient of adapters, whose kernels are spread over `fsdp` and `tensor`."""
  spec = models.ModelSpec(
    vocab_size=32, width=16, layers=1, heads=4, kv_heads=4, head_width=4, mlp_width=16
  )
  settings = lora.LoraSettings(rank=2, alpha=4.0)
  base = models.init(spec, jax.random.key(0))
  adapters = lora.init(spec, jax.random.key(1), settings)
  adapters = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), adapters)
  batch = random_batch()
  weights = rng.normal(size=(P, R, T)).astype(np.float32)

  def gradient(mesh):
    def total(adapters, base):
      with partition.over(mesh):
        params = lora.attach(base, adapters, settings)
        return jnp.sum(models.group_logprobs(params, spec, batch)[0] * weights)

    whole = sharding.replicated(mesh)
    step = jax.jit(
      jax.value_and_grad(total), in_shardings=(whole, sharding.param_shardings(mesh, spec))
    )
    return jax.device_get(step(adapters, base))

  one = jax.sharding.Mesh(
    np.array(jax.devices()[:1]).reshape((1,) * 5),
    sharding.MESH_AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * 5,
  )
  mesh = sharding.make_mesh({"fsdp": 2, "tensor": 4})
  chex.assert_trees_all_close(gradient(mesh), gradient(one), atol=1e-5, rtol=1e-4)


def packed_rows_by_a_kernel():
  """Splash, interpreted, over a mesh that XLA alone would have to divide it over."""
  interpreted = functools.partial(fused.splash_lib.make_splash_mha, interpret=True)
  fused.splash_lib.make_splash_mha = interpreted
  arrays = [jnp.asarray(rng.normal(size=(4 * T, n, 8)), jnp.float32) for n in (4, 2, 2)]
  segments_BT = jnp.asarray(rng.integers(1, 3, (4, T))).sort(axis=1)
  mesh = sharding.make_mesh({"data": 4, "tensor": 2})

  def gradient(mesh, compute):
    def total(*arrays):
      with partition.over(mesh):
        return jnp.sum(jnp.sin(layouts.of_rows(segments_BT, compute)(*arrays)))

    whole = sharding.replicated(mesh)
    return jax.jit(jax.value_and_grad(total, argnums=range(3)), in_shardings=whole)

  step = gradient(mesh, models.Compute(attention="splash"))
  expected = gradient(mesh, models.Compute())(*arrays)
  chex.assert_trees_all_close(step(*arrays), expected, atol=2e-5, rtol=1e-4)


WHAT = {
  "ring": ring_of_eight,
  "experts": tokens_are_sent_to_their_experts,
  "lora": adapters_over_tensor,
  "rows": packed_rows_by_a_kernel,
  "kernels": kernels_in_a_spread_program,
}
for name in sys.argv[1:]:
  WHAT[name]()
  print(name)
