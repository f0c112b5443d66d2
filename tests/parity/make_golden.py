"""Writes tests/models/golden/logits.json from `transformers`: `make golden`."""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.parity.cases import CASES, tokens, write_model

GOLDEN = Path(__file__).parent.parent / "models" / "golden" / "logits.json"


def main() -> None:
  golden = {"transformers": transformers.__version__, "logits": {}}
  for name in CASES:
    with tempfile.TemporaryDirectory() as directory:
      write_model(Path(directory), name)
      model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
      ).eval()
      with torch.no_grad():
        logits = model(torch.tensor(tokens(), dtype=torch.long)).logits.numpy()
    kept = logits[:, ::5, ::37]
    golden["logits"][name] = np.round(kept.astype(float), 6).tolist()
  GOLDEN.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
  main()
