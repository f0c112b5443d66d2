"""Held-out accuracy with intervals: avg@k, pass@k, maj@k, records, and paired comparisons."""

from vespo_jax.evaluation.accuracy import Evaluation, summarise
from vespo_jax.evaluation.asking import Evaluator

__all__ = ["Evaluation", "Evaluator", "summarise"]
