"""Logits of every architecture against those `transformers` computed on the same weights.

The numbers are made by `make golden`; `make test-parity` compares with `transformers` itself.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.parity.cases import CASES, tokens, write_model
from vespo_jax import models

GOLDEN = json.loads((Path(__file__).parent / "golden" / "logits.json").read_text())["logits"]


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name, tmp_path):
  write_model(tmp_path, name)
  spec, params, _ = models.load(tmp_path)
  hidden, _ = models.forward(params, spec, tokens())
  logits = np.asarray(hidden @ models.head_table(params).T)[:, ::5, ::37]
  expected = np.array(GOLDEN[name])
  np.testing.assert_allclose(logits, expected, atol=2e-4 * np.abs(expected).max(), rtol=0)
