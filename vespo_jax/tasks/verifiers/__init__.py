"""Verifiers by name: `verifiers.make("math_verify")(response, answer, metadata)` is a `Score`.

exact         the same text, once normalised (exact.py)
numeric       the same number: last in the text, after ####, or boxed (numeric.py)
math_verify   the same mathematics, by Hugging Face's math-verify (mathematics.py)
code          the program passes its tests (code.py)
"""

from vespo_jax.tasks.verifiers import code as _code  # noqa: F401  (these register themselves)
from vespo_jax.tasks.verifiers import exact as _exact  # noqa: F401
from vespo_jax.tasks.verifiers import mathematics as _mathematics  # noqa: F401
from vespo_jax.tasks.verifiers import numeric as _numeric  # noqa: F401
from vespo_jax.tasks.verifiers.base import Verifier, make, registry

names = registry.names

__all__ = ["Verifier", "make", "names"]
