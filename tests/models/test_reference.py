"""One model against a second implementation: plain numpy, one token at a time, from the papers."""

import numpy as np

from vespo_jax import models


def reference(params, spec, ids):
  """Final hidden states of one sequence, [T, D]; float64, loops instead of batched products."""
  params = {
    k: {n: np.asarray(x, np.float64) for n, x in v.items()}
    if isinstance(v, dict)
    else np.asarray(v, np.float64)
    for k, v in params.items()
  }

  def norm(x, scale):
    return x / np.sqrt(np.mean(x * x) + spec.norm_epsilon) * scale

  def frequency(i):
    f = spec.rope_theta ** (-2 * i / spec.head_width)
    if spec.rope_scaling != "llama3":
      return f
    wavelength = 2 * np.pi / f
    if wavelength > spec.rope_context / spec.rope_low_factor:
      return f / spec.rope_factor
    if wavelength < spec.rope_context / spec.rope_high_factor:
      return f
    smooth = (spec.rope_context / wavelength - spec.rope_low_factor) / (
      spec.rope_high_factor - spec.rope_low_factor
    )
    return (1 - smooth) * f / spec.rope_factor + smooth * f

  def feed_forward(x, gate, up, down):
    g = x @ gate
    return (g / (1 + np.exp(-g)) * (x @ up)) @ down

  def mixture(x, layer):
    p = np.exp(x @ layer["router"])
    p /= p.sum()
    chosen = np.argsort(-p)[: spec.active_experts]
    scale = p[chosen].sum() if spec.normalize_router else 1.0
    kernels = ("expert_gate", "expert_up", "expert_down")
    return sum(p[e] / scale * feed_forward(x, *(layer[k][e] for k in kernels)) for e in chosen)

  def rope(x, t):
    half = spec.head_width // 2
    out = np.empty_like(x)
    for i in range(half):
      angle = t * frequency(i)
      c, s = np.cos(angle), np.sin(angle)
      out[i], out[i + half] = x[i] * c - x[i + half] * s, x[i] * s + x[i + half] * c
    return out

  hidden = [params["embedding"][i] for i in ids]
  for n in range(spec.layers):
    layer = {k: v[n] for k, v in params["layers"].items()}
    keys, values, after = [], [], []
    for t, h in enumerate(hidden):
      x = norm(h, layer["attention_norm"])
      q, k, v = (
        (x @ layer[p] + layer.get(f"{p}_bias", 0)).reshape(-1, spec.head_width)
        for p in ("query", "key", "value")
      )
      if spec.qk_norm:
        q = [norm(row, layer["query_norm"]) for row in q]
        k = [norm(row, layer["key_norm"]) for row in k]
      keys.append([rope(row, t) for row in k])
      values.append(v)
      mixed = []
      for i, row in enumerate(q):
        j = i // (spec.heads // spec.kv_heads)
        scores = np.array([rope(row, t) @ key[j] for key in keys]) / np.sqrt(spec.head_width)
        weights = np.exp(scores - scores.max())
        mixed.append(sum(w * v[j] for w, v in zip(weights / weights.sum(), values, strict=True)))
      h = h + np.concatenate(mixed) @ layer["output"]
      x = norm(h, layer["mlp_norm"])
      if spec.experts:
        after.append(h + mixture(x, layer))
      else:
        after.append(h + feed_forward(x, layer["gate"], layer["up"], layer["down"]))
    hidden = after
  return np.stack([norm(h, params["final_norm"]) for h in hidden])


def test_forward_equals_the_reference(model):
  spec, params = model
  ids = np.random.default_rng(0).integers(0, 61, 9)
  hidden, _ = models.forward(params, spec, ids[None].astype(np.int32))
  np.testing.assert_allclose(hidden[0], reference(params, spec, ids), atol=2e-4, rtol=1e-3)
