"""Run by tests/experiments/test_scale.py in a process with eight fake devices: the decode loop that
is spread over them samples what one device samples."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.scale import programs
from vespo_jax import models, sampler
from vespo_jax.sampler import decode as device

ROWS, STEPS, SLOTS = 8, 6, 16
DENSE = models.ModelSpec(
  vocab_size=64, width=32, layers=2, heads=8, kv_heads=4, head_width=8, mlp_width=64
)
EXPERTS = models.ModelSpec(
  *(64, 32, 2, 8, 4, 8, 64), tied_embeddings=False, experts=4, active_experts=2
)

assert jax.device_count() == 8, "start me with XLA_FLAGS=--xla_force_host_platform_device_count=8"
mesh = programs.fake_mesh({"data": 4, "tensor": 2})
settings = sampler.Settings(max_new_tokens=STEPS, temperature=0.8)
for spec in (DENSE, EXPERTS):
  params = models.unstack(models.init(spec, jax.random.key(0)))
  rows = device.Rows(
    tokens_B=jnp.arange(ROWS, dtype=jnp.int32),
    lengths_B=jnp.arange(ROWS, dtype=jnp.int32) % 3,
    counts_B=jnp.zeros(ROWS, jnp.int32),
    keys_BX=jnp.tile(jax.random.key_data(jax.random.key(1)), (ROWS, 1)),
    seeds_B=jnp.arange(ROWS, dtype=jnp.uint32),
    live_B=jnp.arange(ROWS) != 5,
    limits_B=jnp.full(ROWS, STEPS, jnp.int32),
    forced_CB=jnp.full((STEPS, ROWS), -1, jnp.int32),
  )
  enough = jnp.int32(ROWS)
  empty = lambda spec=spec: models.init_cache(spec, ROWS, SLOTS)
  cache, one = device.decode(params, spec, settings.compiled(), empty(), rows, enough)
  spread_cache, spread = programs.jit_decode(spec, settings, mesh)(params, empty(), rows, enough)
  keys = spread_cache.keys[0]
  assert keys.addressable_shards[0].data.size == keys.size // 8
  np.testing.assert_array_equal(spread.draws.tokens_B, one.draws.tokens_B)
  np.testing.assert_array_equal(spread.sampled_B, one.sampled_B)
  np.testing.assert_allclose(
    spread.draws.behaviour_logprobs_B, one.draws.behaviour_logprobs_B, atol=1e-5
  )
  np.testing.assert_allclose(keys, cache.keys[0], atol=1e-5)
  print(f"experts {spec.experts}")
