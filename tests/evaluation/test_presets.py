"""The settings of papers, under the names that people give to datasets."""

import pytest

from vespo_jax.evaluation import presets


@pytest.mark.parametrize(
  "preset, dataset, samples",
  [
    *[("vespo", name, 32) for name in ("aime_2024", "AIME24", "aime-2025", "aime25")],
    *[("vespo", name, 16) for name in ("amc_2023", "amc23")],
    *[("vespo", name, 4) for name in ("math_500", "MATH-500")],
    *[("vespo", name, 10) for name in ("humaneval_plus", "HumanEval+", "mbpp+")],
    ("dppo", "aime_2025", 32),
    ("vcpo", "gsm8k", 3),
  ],
)
def test_samples_of_a_problem(preset, dataset, samples):
  assert presets.samples_of(preset, [f"family/{dataset}"]) == samples


def test_a_dataset_that_the_paper_lacks_is_refused():
  with pytest.raises(ValueError, match="--preset=dppo .*aime24, aime25.* family/gsm8k"):
    presets.samples_of("dppo", ["family/aime24", "family/gsm8k"])


def test_a_mixture_has_one_number_of_samples():
  assert presets.samples_of("vespo", ["math/aime24", "math/aime25"]) == 32
  with pytest.raises(ValueError, match="32 of math/aime24, 4 of math/math500.: give --samples"):
    presets.samples_of("vespo", ["math/aime24", "math/math500"])


def test_how_they_sample():
  found = {name: (preset.temperature, preset.top_p) for name, preset in presets.PRESETS.items()}
  assert found == {"vespo": (1.0, 0.7), "dppo": (0.7, 0.95), "vcpo": (0.8, 0.7)}
