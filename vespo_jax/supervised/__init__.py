"""Supervised fine-tuning: demonstrations, packed into rows, through the learner's own update."""

from vespo_jax.supervised.cascade import Cascade, Rewritten
from vespo_jax.supervised.demonstrations import Encoded, Turns, encode, encode_all, read_jsonl
from vespo_jax.supervised.likelihood import Likelihood, Scorer, summarise
from vespo_jax.supervised.loop import Loop, LoopSettings
from vespo_jax.supervised.packing import Packed, pack

__all__ = [
  "Cascade",
  "Encoded",
  "Likelihood",
  "Loop",
  "LoopSettings",
  "Packed",
  "Rewritten",
  "Scorer",
  "Turns",
  "encode",
  "encode_all",
  "pack",
  "read_jsonl",
  "summarise",
]
