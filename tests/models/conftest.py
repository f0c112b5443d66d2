import jax
import numpy as np
import pytest
from families import CASES, SPECS

from vespo_jax import models


@pytest.fixture(params=CASES)
def model(request):
  """A small spec of each family and parameters large enough that every part matters."""
  spec = models.ModelSpec(
    vocab_size=61,
    width=24,
    layers=2,
    heads=4,
    kv_heads=2,
    head_width=8,
    mlp_width=40,
    **SPECS[request.param],
  )
  params = models.init(spec, jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), params)
  return spec, params
