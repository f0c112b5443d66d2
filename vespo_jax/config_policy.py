"""The policy that a config names, and what is asked of it."""

from __future__ import annotations

import os

from ml_collections import ConfigDict, FrozenConfigDict

from vespo_jax import weights
from vespo_jax.config_flags import SIZES
from vespo_jax.config_rules import ConfigError, one_line, shown
from vespo_jax.models import ModelSpec, lora
from vespo_jax.models.lora import LoraSettings
from vespo_jax.sampler import placement
from vespo_jax.tokenizers import byte_tokenizer


def make_spec(config: FrozenConfigDict) -> ModelSpec:
  """The architecture of the policy: that of `policy.path`, of which only the description is read,
  or the configured one. Raises ConfigError if there is no such model."""
  policy = config.policy
  if not policy.path:
    vocab_size = byte_tokenizer().vocab_size
    return ModelSpec(vocab_size, **{size: policy[size] for size in SIZES})
  if not os.path.exists(policy.path):
    raise ConfigError(
      f"policy.path={shown(policy.path)} does not exist; nothing is downloaded: give a run's "
      "directory, one in Hugging Face's layout, or a GGUF file"
    )
  try:
    return weights.read_spec(policy.path)
  except (ValueError, OSError) as error:
    raise ConfigError(f"policy.path={shown(policy.path)}: {one_line(error)}") from error


def make_lora(config: ConfigDict | FrozenConfigDict, spec: ModelSpec) -> LoraSettings | None:
  """The configured adapters, None if the whole model is trained. Raises ConfigError if they target
  no layer of the model."""
  if not config.lora.rank:
    return None
  settings = LoraSettings(config.lora.rank, config.lora.alpha, config.lora.targets)
  try:
    lora.targeted(spec, settings)
  except ValueError as error:
    raise ConfigError(f"lora.{error}") from error
  return settings


def check_spec(config: ConfigDict | FrozenConfigDict, spec: ModelSpec) -> None:
  """Raises ConfigError if something is asked of a model that it lacks: routers, positions."""
  for key, off in (("balance_coefficient", 0), ("z_coefficient", 0), ("replay", "off")):
    if not spec.experts and config.moe[key] != off:
      raise ConfigError(
        f"moe.{key}={config.moe[key]!r} needs a mixture of experts, and the policy is dense"
      )
  if config.policy.path and config.sampler.max_new_tokens >= spec.context:
    raise ConfigError(
      f"sampler.max_new_tokens={config.sampler.max_new_tokens} does not fit the policy's "
      f"{spec.context} positions with a prompt"
    )
  longest = config.task.max_prompt_tokens + config.sampler.max_new_tokens
  if config.policy.path and config.task.max_prompt_tokens and longest > spec.context:
    raise ConfigError(
      f"task.max_prompt_tokens={config.task.max_prompt_tokens} and sampler.max_new_tokens="
      f"{config.sampler.max_new_tokens} do not fit the policy's {spec.context} positions"
    )


def check_policy(config: FrozenConfigDict) -> None:
  """Raises ConfigError if there is no such policy, or what is asked of it cannot be done."""
  policy = config.policy
  experts, active = policy.experts, policy.active_experts
  if not policy.path and not min(experts, 1) <= active <= experts:
    raise ConfigError(
      f"policy.active_experts={active} must be from 1 to policy.experts={experts}, or both 0"
    )
  if not policy.path and policy.heads % policy.kv_heads:
    raise ConfigError(
      f"policy.heads={policy.heads} must be a multiple of policy.kv_heads={policy.kv_heads}"
    )
  spec = make_spec(config)
  check_spec(config, spec)
  _check_attention(config, spec)
  _check_weights(config, spec)
  make_lora(config, spec)


def _check_attention(config: FrozenConfigDict, spec: ModelSpec) -> None:
  name, mesh = config.policy.attention, config.mesh
  dtype = config.sampler.dtype
  if config.sampler.attention == "paged" and dtype != "bfloat16":
    raise ConfigError(f"sampler.attention='paged' needs sampler.dtype='bfloat16', not {dtype!r}")
  if name != "dense" and mesh.sequence != 1:
    raise ConfigError(
      f"policy.attention={name!r} sees whole sequences, and mesh.sequence={mesh.sequence} divides "
      "them; use policy.attention='dense' there"
    )
  if name == "cudnn" and config.policy.dtype != "bfloat16":
    raise ConfigError("policy.attention='cudnn' needs policy.dtype='bfloat16'")
  if name == "cudnn" and (spec.head_width % 8 or spec.head_width > 256):
    raise ConfigError(
      f"policy.attention='cudnn' needs heads of a multiple of 8 up to 256, and the policy's have "
      f"{spec.head_width}"
    )


def _check_weights(config: FrozenConfigDict, spec: ModelSpec) -> None:
  """How weights are published, and what holds them."""
  sampler, dtype = config.sampler, config.runtime.pieces.dtype
  if config.runtime.weights == "pieces" and dtype != "float32":
    proximal = config.proximal_step.divergence
    for key, value, needed in (  # a run goes on with a proximal policy as it was published: rounded
      ("sampler.dtype", sampler.dtype, (dtype,)),
      ("correction.denominator", config.correction.denominator, ("behaviour",)),
      ("proximal_step.divergence", proximal, ("none",)),
      ("moe.replay", config.moe.replay, ("off", "R3")),
    ):
      if value not in needed:
        choices = " or ".join(map(repr, needed))
        raise ConfigError(
          f"runtime.pieces.dtype={dtype!r} needs {key}={choices}, and it is {value!r}"
        )
  if sampler.devices and config.runtime.transport != "local":
    raise ConfigError(
      f"sampler.devices={sampler.devices!r} needs runtime.transport='local', whose samplers are "
      f"processes of their own here; it is {config.runtime.transport!r}"
    )
  slots = sampler.slots
  if slots % sampler.tensor:
    raise ConfigError(f"sampler.slots={slots} do not divide over sampler.tensor={sampler.tensor}")
  try:
    placement.check(sampler.tensor, spec)
  except ValueError as error:
    raise ConfigError(f"sampler.tensor={sampler.tensor}: {error}") from error
