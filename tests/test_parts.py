"""What samplers are started with."""

import contextlib
import types

import pytest
from ml_collections import FrozenConfigDict

from configs import debug
from vespo_jax import models, parts
from vespo_jax.config import ConfigError
from vespo_jax.hosts import Hosts
from vespo_jax.tokenizers import byte_tokenizer

SPEC = models.ModelSpec(
  vocab_size=264, width=16, layers=1, heads=2, kv_heads=2, head_width=8, mlp_width=16
)


def started(monkeypatch, **values):
  """The transport and the memory of each sampler."""
  calls = []

  def start_sampler(transport, spec, settings, *, env, **how):
    calls.append((transport, float(env[parts.GPU_MEMORY_VARIABLE])))
    return types.SimpleNamespace(close=lambda: None)

  monkeypatch.setattr(parts, "start_sampler", start_sampler)
  config = debug.get_config()
  for key, value in values.items():
    section, _, name = key.replace("__", ".").rpartition(".")
    of = config
    for part in section.split("."):
      of = of[part]
    of[name] = value
  with contextlib.ExitStack() as stack:
    parts.open_sampler(FrozenConfigDict(config), SPEC, byte_tokenizer(), stack, Hosts())
  return calls[0]


@pytest.mark.parametrize(
  "values,memory",
  [
    ({"runtime__transport": "local"}, 0.4 / 4),  # all on the learner's
    ({"sampler__devices": "4,5,6,7", "runtime__transport": "local"}, 0.4),
    ({"runtime__transport": "ray", "runtime__ray__num_gpus": 1.0}, 0.4),
    ({"runtime__transport": "ray", "runtime__ray__num_gpus": 2.0}, 0.4),
    ({"runtime__transport": "ray", "runtime__ray__num_gpus": 0.25}, 0.1),
  ],
)
def test_a_sampler_has_its_part_of_the_gpus_that_it_has(values, memory, monkeypatch):
  several = {"sampler__processes": 4, "runtime__gpu_memory_fraction": 0.4}
  found = started(monkeypatch, **several, **values)
  assert found == (values["runtime__transport"], pytest.approx(memory))


def test_more_devices_than_there_are_is_one_message(monkeypatch):
  with pytest.raises(ConfigError, match="sampler.tensor=2 is more than the 1 devices of this proc"):
    started(monkeypatch, sampler__tensor=2)
