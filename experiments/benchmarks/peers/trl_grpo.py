"""TRL's GRPOTrainer with `loss_type="vespo"` on the reference workload.

Timed are whole optimizer steps of the trainer as it runs itself (generation by Hugging Face's
`generate`, rewards that cost nothing, its own log-probs, loss, AdamW), and within each the calls of
`generate`; the rest of a step is the update.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import resource
import tempfile
import time

import datasets
import tokenizers
import torch
import transformers
import trl

VOCABULARY = 512


def main() -> None:
  """Prints one JSON object."""
  parser = argparse.ArgumentParser(description=__doc__)
  for name, value in (("prompts", 32), ("samples", 8), ("prompt-tokens", 32), ("new-tokens", 64)):
    parser.add_argument(f"--{name}", type=int, default=value)
  parser.add_argument("--repetitions", type=int, default=3)
  # sequences of a forward and backward pass; 0: all at once, in three times the memory
  parser.add_argument("--batch", type=int, default=32)
  options = parser.parse_args()
  torch.set_num_threads(2)
  sequences = options.prompts * options.samples
  batch = options.batch or sequences
  with tempfile.TemporaryDirectory() as folder:
    arguments = trl.GRPOConfig(
      output_dir=folder,
      loss_type="vespo",
      beta=0.0,
      learning_rate=1e-4,
      per_device_train_batch_size=batch,
      gradient_accumulation_steps=sequences // batch,
      num_generations=options.samples,
      max_completion_length=options.new_tokens,
      generation_kwargs={"min_new_tokens": options.new_tokens},
      temperature=1.0,
      max_steps=options.repetitions + 1,
      use_cpu=True,
      bf16=False,
      gradient_checkpointing=False,  # TRL's default, True, is slower
      report_to="none",
      save_strategy="no",
      logging_strategy="no",
      disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
      model=_model(),
      reward_funcs=lambda completion_ids, **_: [float(ids[0] % 2 == 0) for ids in completion_ids],
      args=arguments,
      train_dataset=_problems(options),
      processing_class=_tokenizer(),
      callbacks=[clock := _Clock()],
    )
    generate = trainer.model.generate
    trainer.model.generate = clock.timed(generate)
    trainer.train()
  assert clock.widths == {options.prompt_tokens + options.new_tokens}, clock.widths
  steps, generating = clock.steps[1:], clock.generating[1:]
  packages = ("trl", "torch", "transformers")
  result = {
    "sample_s": generating,
    "update_s": [a - b for a, b in zip(steps, generating, strict=True)],
    "rl_step_s": steps,
    "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    "versions": {name: importlib.metadata.version(name) for name in packages},
  }
  print(json.dumps(result))


class _Clock(transformers.TrainerCallback):
  """Seconds of every step, and of `generate` within it."""

  def __init__(self):
    self.steps: list[float] = []
    self.generating: list[float] = []
    self.widths: set[int] = set()  # tokens of prompt and response together

  def on_step_begin(self, *args, **kwargs):
    self.generating.append(0.0)
    self.steps.append(time.perf_counter())

  def on_step_end(self, *args, **kwargs):
    self.steps[-1] = time.perf_counter() - self.steps[-1]

  def timed(self, generate):
    def call(*args, **kwargs):
      started = time.perf_counter()
      result = generate(*args, **kwargs)
      self.generating[-1] += time.perf_counter() - started
      self.widths.add(result.shape[1])
      return result

    return call


def _model() -> transformers.PreTrainedModel:
  torch.manual_seed(0)
  config = transformers.Qwen3Config(
    vocab_size=VOCABULARY,
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=32,
    intermediate_size=1024,
    tie_word_embeddings=True,
    use_cache=True,
    eos_token_id=1,
    pad_token_id=0,
    bos_token_id=None,
  )
  return transformers.Qwen3ForCausalLM(config)


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
  # special tokens are found inside words too: none may begin another
  words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w2"))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left"
  )


def _problems(options: argparse.Namespace) -> datasets.Dataset:
  generator = torch.Generator().manual_seed(0)
  count = options.prompts * (options.repetitions + 1)
  ids = torch.randint(2, VOCABULARY, (count, options.prompt_tokens), generator=generator)
  return datasets.Dataset.from_dict({"prompt": [" ".join(f"w{i}" for i in row) for row in ids]})


if __name__ == "__main__":
  main()
