"""Answers prompts: `python -m vespo_jax.sample --model=PATH [--prompt="..."]`.

Without --prompt it is a session on a terminal (/help lists its commands), or answers each line of
a pipe. A prompt is put into the model's chat template if it has one; --raw continues it as it is.
Exit codes: 0, or 2 for a bad model, setting or prompt.
"""

from __future__ import annotations

import argparse
import sys

import jax

from vespo_jax import interactive, models
from vespo_jax.conversation import Conversation, check_prompt
from vespo_jax.metrics import printable
from vespo_jax.sampler import Settings, generate


def main(argv: list[str]) -> int:
  """Runs one command line; returns the exit code."""
  parser = argparse.ArgumentParser(prog="python -m vespo_jax.sample", description=__doc__)
  parser.add_argument("--model", required=True, help="Hugging Face or run directory, or GGUF file")
  parser.add_argument("--prompt", help="one prompt to answer; without it, standard input is read")
  parser.add_argument("--raw", action="store_true", help="no chat template")
  parser.add_argument("--samples", type=int, default=1)
  parser.add_argument("--temperature", type=float, default=1.0, help="0 is greedy")
  parser.add_argument("--top_k", type=int, default=0, help="0 is off")
  parser.add_argument("--top_p", type=float, default=1.0, help="1 is off")
  parser.add_argument("--min_p", type=float, default=0.0, help="0 is off")
  parser.add_argument("--stop", action="append", default=[], help="text that ends an answer")
  parser.add_argument("--max_new_tokens", type=int, help="64, or 512 without --prompt")
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args(argv[1:])
  single = arguments.prompt is not None
  try:
    if not 0 <= arguments.seed < 2**32:
      raise ValueError(f"--seed={arguments.seed} must be from 0 to 2**32 - 1")
    spec, params, tokenizer = models.load(arguments.model)
    params = models.unstack(params)  # once, and not for every answer
    model = spec, params, tokenizer
    longest = arguments.max_new_tokens
    settings = Settings(
      max_new_tokens=(64 if single else 512) if longest is None else longest,
      temperature=arguments.temperature,
      samples_per_prompt=arguments.samples,
      stop_ids=tokenizer.stop_ids,
      top_k=arguments.top_k,
      top_p=arguments.top_p,
      min_p=arguments.min_p,
      stop_strings=tuple(arguments.stop),
    )
    prompt = []
    if single:
      prompt = tokenizer.encode_prompt(arguments.prompt, raw=arguments.raw)
      check_prompt(spec, prompt, settings)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  if not single:
    return interactive.run(Conversation(model, settings, raw=arguments.raw, seed=arguments.seed))
  key = jax.random.key(arguments.seed)
  for rollout in generate(params, spec, [prompt], key, settings, decode=tokenizer.decode):
    text = tokenizer.decode(rollout.response_ids)
    print(f"{printable(text)}   (log-prob {rollout.plain_logprobs.sum():.2f}, {rollout.finish})")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
