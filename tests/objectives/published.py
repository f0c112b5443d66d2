"""The comparison of an objective with its publication, and what publications share.

A reference is a function `loss(logprobs, b)` in plain jax.numpy, written from the formula; `b`
holds the batch: `behaviour`, `proximal` (or None), `mask` [B, T], `a`, the advantages [B, 1], and
`policy`, the numbers of `logprobs` as a constant, for what is published as detached.
"""

from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np

from vespo_jax import objectives

B, T = 24, 7
SINGLE, DOUBLE = (False, 1e-6), (True, 1e-12)  # 64 bits or not, and the largest relative error
sg = jax.lax.stop_gradient


def make_batch(seed=0, spread=0.6, rows=B, width=T, drift=0.0, proximal=None):
  """Ragged rows (one of them empty, some with holes), both signs and zero of the advantage, and log
  ratios of standard deviation `spread` around `drift`; the proximal policy as far off again.

  The numbers are exact in float32, so that both precisions see the same branches.
  """
  rng = np.random.default_rng(seed)
  policy = rng.uniform(-3.0, -0.2, (rows, width))
  lengths = rng.integers(1, width + 1, rows)
  advantages = rng.normal(size=rows)
  if rows > 3:
    lengths[:2], advantages[2] = (0, width), 0.0
  mask = np.arange(width) < lengths[:, None]
  mask[::4, 1:3] = False
  towards = lambda anchor, size: np.minimum(anchor - rng.normal(drift, size, anchor.shape), -0.01)
  batch = {
    "policy_logprobs": policy,
    "behaviour_logprobs": towards(policy, spread),
    "advantages": advantages,
    "mask": mask,
  }
  if proximal is not None:
    batch["proximal_logprobs"] = towards(policy, proximal)
  return {k: x if x.dtype == bool else x.astype(np.float32).astype(float) for k, x in batch.items()}


def parts(batch, against="behaviour_logprobs"):
  """numpy: log ratios [B, T], advantages [B, 1], mask [B, T]."""
  return batch["policy_logprobs"] - batch[against], batch["advantages"][:, None], batch["mask"]


def assert_all_hit(mask, **branches):
  """Every branch of a method is taken by some token of the mask, and not by all."""
  for name, where in branches.items():
    taken = np.broadcast_to(where, mask.shape)[mask].mean()
    assert 0 < taken < 1, f"{name}: taken by {taken} of the tokens"


def prove(objective, reference, batch, extras=None, precisions=(SINGLE, DOUBLE), **options):
  """Value and gradient of `policy_loss` equal those of `reference`, to 1e-6 in float32 and 1e-12 in
  float64: relative errors, of the gradient in the Euclidean norm."""
  for wide, tolerance in precisions:
    with jax.enable_x64(wide):
      given = {k: jnp.asarray(x, None if x.dtype == bool else float) for k, x in batch.items()}
      more = {k: jnp.asarray(x, float) for k, x in (extras or {}).items()}
      b = SimpleNamespace(
        policy=given["policy_logprobs"],
        behaviour=given["behaviour_logprobs"],
        proximal=given.get("proximal_logprobs"),
        a=given["advantages"][:, None],
        mask=batch["mask"],
      )

      def ours(logprobs):
        inputs = {**given, "policy_logprobs": logprobs}  # noqa: B023
        return objectives.policy_loss(objective, **inputs, extras=more, **options)[0]  # noqa: B023

      logprobs = given["policy_logprobs"]
      loss, grad = jax.value_and_grad(ours)(logprobs)
      expected, expected_grad = jax.value_and_grad(lambda x: reference(x, b))(logprobs)  # noqa: B023
      assert grad.dtype == (jnp.float64 if wide else jnp.float32)
      assert abs(loss - expected) <= tolerance * abs(expected), (loss, expected)
      error = jnp.linalg.norm(grad - expected_grad) / jnp.linalg.norm(expected_grad)
      assert error <= tolerance, error


def coefficients_of(objective, batch, **extras):
  """numpy: coefficients [B, T] in float32, and the metrics."""
  log_r, _, mask = parts(
    batch, "proximal_logprobs" if "proximal_logprobs" in batch else "behaviour_logprobs"
  )
  arrays = {k: jnp.asarray(x, jnp.float32) for k, x in {**batch, **extras}.items() if k != "mask"}
  log_r = jnp.asarray(log_r, jnp.float32)
  coefficients, metrics = objective(log_r, arrays.pop("advantages"), jnp.asarray(mask), arrays)
  return np.asarray(coefficients), {k: float(v) for k, v in metrics.items()}


def gradient(objective, batch, **options):
  """numpy: the gradient of `policy_loss` in float32."""
  given = {k: jnp.asarray(x, None if x.dtype == bool else jnp.float32) for k, x in batch.items()}

  def loss(logprobs):
    inputs = {**given, "policy_logprobs": logprobs}
    return objectives.policy_loss(objective, **inputs, **options)[0]

  return np.asarray(jax.grad(loss)(given["policy_logprobs"]))


def assert_same_gradient(one, other, batch, tolerance=1e-6):
  """Two objectives have the same coefficients: gradients, under one aggregation, which are not zero
  and equal but for a relative error in the Euclidean norm."""
  first, second = (gradient(x, batch, aggregation="token-mean") for x in (one, other))
  assert np.linalg.norm(second) > 0
  assert np.linalg.norm(first - second) <= tolerance * np.linalg.norm(second)


def assert_finite_at_extremes(objective):
  """Loss, gradient and metrics, for log ratios of +-1e4 and for a behaviour policy that gives a
  token no probability at all, which is no different from the former: in some rows at all tokens,
  in others at the first and some more."""
  where = np.random.default_rng(1).random((B, T)) < np.repeat([1.0, 0.3, 0.0], B // 3)[:, None]
  where[: 2 * B // 3, 0] = True
  grads = {}
  for far in (1e4, -1e4, np.inf):
    batch = make_batch()
    lowered, other = "behaviour_logprobs", "policy_logprobs"
    lowered, other = (lowered, other) if far > 0 else (other, lowered)
    batch[lowered] = np.where(where, batch[other] - abs(far), batch[lowered])
    given = {k: jnp.asarray(x, None if x.dtype == bool else jnp.float32) for k, x in batch.items()}

    def loss(logprobs):
      return objectives.policy_loss(objective, **{**given, "policy_logprobs": logprobs})  # noqa: B023

    (value, metrics), grads[far] = jax.value_and_grad(loss, has_aux=True)(given["policy_logprobs"])
    chex.assert_tree_all_finite((value, grads[far], metrics))
  np.testing.assert_allclose(grads[np.inf], grads[1e4], rtol=1e-6)


# --- what the publications share


def token_mean(losses, mask):
  """DAPO, eq. 8: over all tokens of the batch."""
  return jnp.sum(jnp.where(mask, losses, 0.0)) / mask.sum()


def seq_mean_token_sum(losses, mask):
  """Over the sequences that have tokens, the sum of each."""
  return jnp.sum(jnp.where(mask, losses, 0.0)) / mask.any(1).sum()


def seq_mean_token_mean(losses, mask):
  """GRPO, eq. 3: over the tokens of each sequence, then over the sequences that have tokens."""
  rows = jnp.sum(jnp.where(mask, losses, 0.0), axis=1)[mask.any(1)] / mask.sum(1)[mask.any(1)]
  return jnp.mean(rows)


def ppo(r, a, low, high, dual_clip=0.0):
  """-J of arXiv 1707.06347 eq. 7 with bounds [low, high], and of 1912.09729 where A < 0."""
  j = jnp.minimum(r * a, jnp.clip(r, low, high) * a)
  return -jnp.where(a < 0, jnp.maximum(j, dual_clip * a), j) if dual_clip else -j


def sequence_ratio(log_ratio, mask, length_norm=0.0):
  """[B, 1]: (the product of the row's ratios)^(1 / T^length_norm)."""
  w = jnp.prod(jnp.where(mask, jnp.exp(log_ratio), 1.0), axis=1)
  return (w ** (1.0 / np.maximum(mask.sum(1), 1) ** length_norm))[:, None]
