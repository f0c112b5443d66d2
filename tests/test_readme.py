"""The method that the README adds works as it says."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vespo_jax import advantages, objectives

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_method_of_the_readme(monkeypatch):
  section = README.split("### Add a method")[1]
  code = re.search(r"```python\n(.*?)```", section, re.S).group(1)
  assert len(code.splitlines()) <= 20
  monkeypatch.setattr(objectives.registry, "_makers", dict(objectives.registry._makers))
  exec(compile(code, "token_is.py", "exec"), {})
  assert objectives.defaults("token_is") == {"cap": 2.0}
  rng = np.random.default_rng(0)
  policy, behaviour = (jnp.asarray(rng.normal(-1, 1, (6, 4)), jnp.float32) for _ in range(2))
  advantage, mask = jnp.asarray(rng.normal(size=6), jnp.float32), jnp.ones((6, 4), bool)

  def published(logprobs):
    weight = jax.lax.stop_gradient(jnp.minimum(jnp.exp(logprobs - behaviour), 2.0))
    return -jnp.mean(weight * advantage[:, None] * logprobs)

  def ours(logprobs):
    return objectives.policy_loss(
      objectives.make("token_is"),
      policy_logprobs=logprobs,
      behaviour_logprobs=behaviour,
      advantages=advantage,
      mask=mask,
    )[0]

  np.testing.assert_allclose(jax.grad(ours)(policy), jax.grad(published)(policy), rtol=1e-6)


def test_every_method_and_estimator_is_listed():
  listed = set(re.findall(r"`([a-z0-9_]+)`", README))
  known = {*objectives.names(), *advantages.names(), *objectives.corrections.names()} - {"none"}
  assert known <= listed, known - listed
