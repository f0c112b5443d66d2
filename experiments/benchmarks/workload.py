"""The work that is timed: a policy, what it samples, and the arithmetic that takes at least."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from vespo_jax import advantages, models, objectives
from vespo_jax.learner.gradient import LossSettings
from vespo_jax.learner.optimizer import OptimizerSettings, make_optimizer
from vespo_jax.learner.update import (
  StepSettings,
  compile_update,
  init_state,
  make_update,
  place_state,
)
from vespo_jax.models import ModelSpec
from vespo_jax.sampler import Settings
from vespo_jax.sharding import make_mesh
from vespo_jax.types import Params, TokenIds, TrainBatch

TINY = ModelSpec(
  vocab_size=512, width=256, layers=4, heads=8, kv_heads=4, head_width=32, mlp_width=1024
)
MODELS = ("tiny-qwen3", "smollm2")


@dataclasses.dataclass(frozen=True)
class Workload:
  """One RL step: sample, then update; the defaults are the reference.

  Attributes:
    model: one of `MODELS`; the tiny one has random weights.
    prompts, samples: groups of a step, and responses to each.
    prompt_tokens, new_tokens: of every prompt and every response: nothing stops early.
    minibatches: the updates that the step's prompts are cut into.
    micro_batches: pieces of an update.
  """

  model: str = "tiny-qwen3"
  prompts: int = 32
  samples: int = 8
  prompt_tokens: int = 32
  new_tokens: int = 64
  minibatches: int = 1
  micro_batches: int = 16

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, int) and value < 1:
        raise ValueError(f"{field.name} must be at least 1, got {value}")
    if self.prompts % (self.minibatches * self.micro_batches):
      raise ValueError(
        f"{self.prompts} prompts do not divide into {self.minibatches} minibatches of "
        f"{self.micro_batches} pieces"
      )

  @functools.cached_property
  def policy(self) -> tuple[ModelSpec, Params]:
    """The model. Raises ValueError if its weights are not installed."""
    if self.model == "tiny-qwen3":
      return TINY, models.init(TINY, jax.random.key(0))
    from configs import smollm2

    return models.load(smollm2.model_path())[:2]

  @property
  def spec(self) -> ModelSpec:
    """Of the policy."""
    return self.policy[0]

  @property
  def settings(self) -> Settings:
    """Of sampling, without a stop token."""
    return Settings(max_new_tokens=self.new_tokens, samples_per_prompt=self.samples)

  def make_prompts(self) -> list[TokenIds]:
    """Random token ids, the same every time."""
    rng = np.random.default_rng(0)
    shape = (self.prompts, self.prompt_tokens)
    return list(rng.integers(0, self.spec.vocab_size, shape).astype(np.int32))

  def make_batch(self) -> TrainBatch:
    """One minibatch of random tokens, without padding."""
    rng = np.random.default_rng(1)
    P = self.prompts // self.minibatches
    shape, V = (P, self.samples, self.new_tokens), self.spec.vocab_size
    return TrainBatch(
      prompt_tokens_PS=rng.integers(0, V, (P, self.prompt_tokens)).astype(np.int32),
      prompt_mask_PS=np.ones((P, self.prompt_tokens), bool),
      response_tokens_PRT=rng.integers(0, V, shape).astype(np.int32),
      response_mask_PRT=np.ones(shape, bool),
      behaviour_logprobs_PRT=np.full(shape, -np.log(V), np.float32),
      rewards_PR=rng.integers(0, 2, shape[:2]).astype(np.float32),
    )

  def make_update(self):
    """VESPO with AdamW: the state before the first update, and the compiled update."""
    spec, params = self.policy
    optimizer = make_optimizer(OptimizerSettings(learning_rate=1e-4))
    update = make_update(
      spec,
      objectives.make("vespo"),
      advantages.make("grpo"),
      optimizer,
      LossSettings(micro_batches=self.micro_batches),
      StepSettings(),
    )
    mesh = make_mesh({"data": 1})
    state = place_state(mesh, spec, init_state(jax.tree.map(jnp.copy, params), optimizer))
    return state, compile_update(update, mesh, spec, state)

  @property
  def sequences(self) -> int:
    """Responses of a step."""
    return self.prompts * self.samples

  @property
  def sampled_tokens(self) -> int:
    """Response tokens of a step."""
    return self.sequences * self.new_tokens

  @property
  def computed_tokens(self) -> int:
    """Tokens of a step with each prompt once."""
    return self.prompts * self.prompt_tokens + self.sampled_tokens

  @property
  def forward_flops(self) -> float:
    """Of the log-probs of all response tokens: prompts once, attention causal, head on responses.

    Multiplications and additions of matrix products; a backward pass needs twice as many more.
    """
    spec = self.spec
    linear = 2 * self.computed_tokens * sum(K * N for K, N in linear_shapes(spec)) * spec.layers
    head = 2 * self.sampled_tokens * spec.width * spec.vocab_size
    S, T = self.prompt_tokens, self.new_tokens
    pairs = self.prompts * S * (S + 1) / 2 + self.sequences * (T * S + T * (T + 1) / 2)
    return linear + head + 4 * pairs * spec.heads * spec.head_width * spec.layers

  @property
  def update_flops(self) -> float:
    """Of all updates of a step."""
    return 3 * self.forward_flops


def linear_shapes(spec: ModelSpec) -> list[tuple[int, int]]:
  """(in, out) of the kernels that a token of a layer goes through."""
  D, F, H = spec.width, spec.mlp_width, spec.head_width
  attention = [(D, spec.heads * H), (D, spec.kv_heads * H), (D, spec.kv_heads * H)]
  mlp = [(D, F), (D, F), (F, D)] * max(1, spec.active_experts)
  return [*attention, (spec.heads * H, D), *mlp]
