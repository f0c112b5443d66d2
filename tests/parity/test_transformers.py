"""Our models against Hugging Face `transformers` on the same weights: `make test-parity`.

Left-over differences are float32 rounding: products are summed in another order.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity.cases import CASES, tokens, write_model
from vespo_jax import models, objectives, sampler
from vespo_jax.learner.routing import auxiliary_losses
from vespo_jax.weights.names import table

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
  """The model as we load it, and as `transformers` does, eager attention and experts, float32."""
  directory = tmp_path_factory.mktemp(request.param)
  write_model(directory, request.param)
  spec, params, _ = models.load(directory)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.float32, attn_implementation="eager"
  )
  return spec, params, theirs.eval(), directory


def logits(params, spec, ids):
  hidden, _ = models.forward(params, spec, ids)
  return hidden @ models.head_table(params).T


def test_logits_and_log_probs(pair):
  spec, params, theirs, _ = pair
  ids = tokens()
  with torch.no_grad():
    expected = theirs(torch.tensor(ids, dtype=torch.long)).logits
  scale = float(expected.abs().max())
  np.testing.assert_allclose(logits(params, spec, ids) / scale, expected.numpy() / scale, atol=2e-5)
  expected = torch.log_softmax(expected, dim=-1)[:, :-1].gather(
    2, torch.tensor(ids[:, 1:, None], dtype=torch.long)
  )[..., 0]
  logprobs, _ = models.token_logprobs(params, spec, ids)
  np.testing.assert_allclose(logprobs[:, 1:], expected.numpy(), atol=2e-4, rtol=1e-5)


def test_gradient_of_a_policy_loss_with_respect_to_every_parameter(pair):
  """VESPO's loss on one batch; its coefficients are ours, the derivative is theirs."""
  spec, params, theirs, _ = pair
  ids = tokens(rows=4)
  mask = np.arange(23) >= np.array([3, 8, 15, 1])[:, None]
  advantages = np.array([1.0, -0.7, 0.4, -1.2], np.float32)
  own = np.asarray(models.token_logprobs(params, spec, ids)[0])[:, 1:]
  behaviour = own + np.random.default_rng(1).normal(0, 0.1, own.shape).astype(np.float32)
  inputs = {
    "behaviour_logprobs": jnp.asarray(behaviour),
    "advantages": jnp.asarray(advantages),
    "mask": jnp.asarray(mask),
  }
  objective = objectives.make("vespo")

  def loss(params):
    logprobs = models.token_logprobs(params, spec, ids)[0][:, 1:]
    return objectives.policy_loss(objective, policy_logprobs=logprobs, **inputs)[0]

  grads = jax.jit(jax.grad(loss))(params)
  coefficients, _ = objective(jnp.asarray(own - behaviour), inputs["advantages"], inputs["mask"])
  long = torch.tensor(ids, dtype=torch.long)
  logprobs = torch.log_softmax(theirs(long).logits, dim=-1)[:, :-1].gather(2, long[:, 1:, None])
  weights = torch.tensor(np.asarray(coefficients) * advantages[:, None] * mask)
  theirs.zero_grad()
  (-(weights * logprobs[..., 0]).sum() / int(mask.sum())).backward()
  named = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
  checked = 0
  for row in table(spec):
    ours = np.asarray(grads[row.path[0]] if len(row.path) == 1 else grads["layers"][row.path[1]])
    ours = ours[row.index]
    expected, axis = _their_gradient(named, row)
    checked += axis is None or row.index[-1] == 0
    expected = expected.T if row.transposed else expected
    scale = np.abs(expected).max()
    assert scale > 0, row.name
    np.testing.assert_allclose(ours / scale, expected / scale, atol=2e-3, err_msg=row.name)
  assert checked >= len(named)


def _their_gradient(named, row):
  """The gradient of one tensor; newer `transformers` hold the experts of a layer as one."""
  if row.name in named:
    return named[row.name], None
  layer = row.name.split(".")[2]
  key = row.path[1]
  prefix = f"model.layers.{layer}.mlp"
  if key == "router":
    return named[f"{prefix}.gate.weight"], None
  expert = row.index[1]
  if key == "expert_down":
    return named[f"{prefix}.experts.down_proj"][expert], 0
  fused = named[f"{prefix}.experts.gate_up_proj"][expert]
  half = fused.shape[0] // 2
  return (fused[:half] if key == "expert_gate" else fused[half:]), 0


@pytest.mark.parametrize("pair", [c for c in CASES if "moe" in c], indirect=True)
def test_the_load_balance_loss_of_every_layer(pair):
  """Their published function, layer by layer, with padding that counts in nothing."""
  spec, params, theirs, _ = pair
  from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

  ids, mask = tokens(), np.arange(24) < np.array([[24], [15]])
  long, real = torch.tensor(ids, dtype=torch.long), torch.tensor(mask.astype(np.int64))
  with torch.no_grad():
    logits = theirs(long, attention_mask=real, output_router_logits=True).router_logits
  expected = [
    load_balancing_loss_func((layer,), spec.experts, spec.active_experts, real) for layer in logits
  ]
  routing = models.forward_routed(params, spec, ids, segments=mask.astype(np.int32))[2]
  balance, _ = auxiliary_losses(routing, routing.load_LE, routing.tokens[0])
  assert len(expected) == spec.layers
  np.testing.assert_allclose(balance, np.mean(expected), rtol=1e-4)


def test_greedy_generation_gives_the_same_ids(pair):
  spec, params, theirs, _ = pair
  prompts = tokens(rows=3, width=9)
  settings = sampler.Settings(max_new_tokens=12, temperature=0.0)
  ours = sampler.generate(params, spec, list(prompts), jax.random.key(0), settings)
  expected = theirs.generate(
    torch.tensor(prompts, dtype=torch.long),
    attention_mask=torch.ones(prompts.shape, dtype=torch.long),
    max_new_tokens=12,
    do_sample=False,
    eos_token_id=None,
    pad_token_id=0,
  )
  for rollout, row in zip(ours, expected.numpy(), strict=True):
    np.testing.assert_array_equal(rollout.response_ids, row[9:])


def test_what_we_write_they_load_with_the_same_logits(pair, tmp_path):
  spec, params, theirs, directory = pair
  _, _, tokenizer = models.load(directory)
  models.save(tmp_path, spec, params, tokenizer)
  again = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  long = torch.tensor(tokens(), dtype=torch.long)
  with torch.no_grad():
    assert torch.equal(again(long).logits, theirs(long).logits)
