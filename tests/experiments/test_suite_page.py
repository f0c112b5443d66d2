"""What is said of results: intervals, verdicts, tables and figures. No policy is trained here."""

import dataclasses

import numpy as np
import pytest
from matplotlib.axes import Axes
from scipy import stats

from experiments import summary
from experiments.suite import page, statistics
from experiments.suite.experiment import ACCURACY, Claim, Experiment


def test_intervals_and_tests_are_students():
  values = [0.5, 0.7, 0.6, 0.9]
  mean, half = statistics.mean_interval(values)
  low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
  assert (mean - half, mean + half) == pytest.approx((low, high))
  other = np.array([0.45, 0.6, 0.58, 0.7])
  expected = stats.ttest_rel(values, other).pvalue
  assert statistics.paired_p(values - other) == pytest.approx(expected)
  assert statistics.paired_p([0.0, 0.0]) == statistics.paired_p([0.3]) == 1.0


@pytest.mark.parametrize(
  ("differences", "expected"),
  [
    ([0.2, 0.21, 0.19], statistics.REPRODUCED),
    ([-0.2, -0.21, -0.19], statistics.CONTRADICTED),
    ([0.2, -0.21, 0.1], statistics.NOT_SEEN),
    ([0.4, 0.41], statistics.TOO_FEW),
  ],
)
def test_verdicts(differences, expected):
  assert statistics.verdict(differences) == expected
  ours = {
    statistics.REPRODUCED: statistics.HOLDS,
    statistics.CONTRADICTED: statistics.REVERSED,
    statistics.NOT_SEEN: statistics.NO_DIFFERENCE,
  }
  assert statistics.verdict(differences, of_the_paper=False) == ours.get(expected, expected)


def result(method, seed, after):
  curves = {"step": [1, 2], "reward/mean": [0.1, after]}
  return {
    **{"method": method, "seed": seed, "staleness": 4, "before": 0.1, "after": after},
    **{"last_reward": after, "updates": 2, "evaluations": [[2, after]]},
    **{"curves": curves, "key": f"{method}{seed}"},
  }


def test_a_page_holds_the_numbers_and_the_verdict(tmp_path, monkeypatch):
  experiment = Experiment(
    "toy",
    "A title",
    [("vespo", 4, "", ()), ("grpo", 4, "", ())],
    [
      Claim("VESPO wins", (70, 54), ("vespo", 4), ("grpo", 4)),
      Claim("GRPO wins", None, ("grpo", 4), ("vespo", 4)),
      Claim("they are alike", (70, 70), ("vespo", 4), ("grpo", 4), tie=True),
    ],
  )
  found = [result("vespo", s, 0.8 + 0.01 * s) for s in range(3)]
  found += [result("grpo", s, 0.5 + 0.012 * s) for s in range(3)]
  text = page.markdown(experiment, found)
  assert "| vespo | 4 | 3 | 81.0 ± 2.5 |" in text and "| grpo | 4 | 3 | 51.2 ± 3.0 |" in text
  assert "+29.8 ± 0.5 points" in text and text.count("| reproduced |") == 1
  ours = next(line for line in text.splitlines() if "GRPO wins" in line)
  assert "| not in the paper |" in ours and ours.endswith(f"| {statistics.REVERSED} |")
  alike = next(line for line in text.splitlines() if "they are alike" in line)
  assert "+29.8 ± 0.5" in alike and alike.endswith(f"| {statistics.TIE} |")
  assert [claim.text for claim, _ in page.judged(experiment, found)] == ["VESPO wins", "GRPO wins"]
  lines = {}
  plot = Axes.plot
  monkeypatch.setattr(
    "matplotlib.axes.Axes.plot",
    lambda axis, x, y, *a, **k: (
      lines.setdefault((axis, k["label"]), (x, y)) and plot(axis, x, y, *a, **k)
    ),
  )
  page.draw(experiment, found, tmp_path / "toy.png")
  drawn = {
    method: xy for (axis, method), xy in lines.items() if axis.get_title(loc="left") == ACCURACY
  }
  assert drawn["vespo"][0] == (0, 2) and drawn["vespo"][1] == pytest.approx([0.1, 0.81])
  assert (tmp_path / "toy.png").stat().st_size > 5000


def test_a_run_that_diverged_has_no_time_to_compare():
  cells = [("vespo", 4, "", ())]
  found = [result("vespo", s, 0.8) | {"asked": 2} for s in range(2)]
  found[0] |= {"curves": {}, "updates": 0}
  found[1]["curves"] = {"wall_time_s": [20.0, 120.0]}
  clock = Experiment("toy", "A title", cells, [], alone=True)
  assert "| 100 |" in page.markdown(clock, found)
  assert "|  |" in page.markdown(clock, found[:1])


def test_the_clock_has_a_column_where_it_is_measured():
  cells = [("vespo", 4, "", ())]
  found = [result("vespo", s, 0.8) for s in range(3)]
  for seed, one in enumerate(found):
    one["curves"] = {"wall_time_s": [20.0, 60.0, 120.0 + seed]}
  text = page.markdown(Experiment("toy", "A title", cells, [], alone=True), found)
  half = stats.t(df=2).ppf(0.975) / np.sqrt(3)
  assert "| collapsed | seconds of training |" in text and f"| 101 ± {half:.0f} |" in text
  assert "seconds" not in page.markdown(Experiment("toy", "A title", cells, []), found)


def test_a_run_that_ended_before_others_does_not_cut_their_curves(tmp_path, monkeypatch):
  experiment = Experiment("toy", "A title", [("vespo", 4, "", ())], [], curves=(ACCURACY,))
  found = [result("vespo", s, 0.8) for s in range(3)]
  for one in found:
    one["evaluations"] = [(2, 0.4), (4, 0.6), (6, 0.8)]
  found[0]["evaluations"] = [(1, 0.1), (2, 0.1), (3, 0.1)]  # as many, of fewer updates
  drawn = []
  monkeypatch.setattr(
    "matplotlib.axes.Axes.plot", lambda axis, x, y, **k: drawn.append((list(x), list(y), k))
  )
  monkeypatch.setattr("matplotlib.figure.Figure.legend", lambda *_, **__: None)
  page.draw(experiment, found, tmp_path / "toy.png")
  (short, whole) = drawn
  assert short[0] == [0, 1, 2, 3] and short[1] == [0.1] * 4 and short[2]["marker"] == "x"
  assert whole[0] == [0, 2, 4, 6] and whole[1] == pytest.approx([0.1, 0.4, 0.6, 0.8])


def test_a_variant_is_tested_against_the_vespo_of_its_kind():
  names = ("vespo, int8", "grpo, int8")
  experiment = Experiment("toy", "A title", [(name, 4, "", ()) for name in names], [])
  found = [result(names[0], s, 0.8 + 0.01 * s) for s in range(3)]
  found += [result(names[1], s, 0.5 + 0.012 * s) for s in range(3)]
  lines = page.markdown(experiment, found).splitlines()
  p = stats.ttest_rel([0.8, 0.81, 0.82], [0.5, 0.512, 0.524]).pvalue
  assert f"| {p:.3g} | 0 |" in next(line for line in lines if line.startswith("| grpo, int8"))
  assert "|  | 0 |" in next(line for line in lines if line.startswith("| vespo, int8"))


def test_the_figure_of_claims_has_each_that_has_its_seeds(tmp_path, monkeypatch):
  """Points of difference, half widths and colours by verdict; the paper's difference where it has
  figures; below three seeds nothing, and no figure of nothing."""
  shown, published = [], []
  plot = Axes.plot
  monkeypatch.setattr(
    "matplotlib.axes.Axes.errorbar",
    lambda _, x, y, xerr, color, **k: shown.append((round(x, 1), y, round(xerr, 1), color)),
  )
  monkeypatch.setattr(
    "matplotlib.axes.Axes.plot",
    lambda axis, x, y, *a, **k: published.append((x, y)) or plot(axis, x, y, *a, **k),
  )
  cells = [(method, 4, "", ()) for method in ("vespo", "grpo", "gspo")]
  claims = [
    Claim("VESPO wins", (70.0, 54.0), ("vespo", 4), ("grpo", 4)),
    Claim("GRPO wins", None, ("grpo", 4), ("vespo", 4)),
    Claim("VESPO is best", "on top", ("vespo", 4), ("gspo", 4)),
  ]
  one, other = Experiment("one", "", cells, claims), Experiment("other", "", cells, claims[:1])
  found = [result("vespo", s, 0.8 + 0.01 * s) for s in range(3)]
  found += [result("grpo", s, 0.5 + 0.012 * s) for s in range(3)]
  found += [result("gspo", s, 0.5) for s in range(2)]
  made = {"one": found, "other": found[:4]}
  page.draw_claims([other, one], made, tmp_path / "claims.png")
  assert shown == [(29.8, 1, 0.5, "C2"), (-29.8, 2, 0.5, "C3")]
  assert published[0] == (16.0, 1) and all(xy == ([], []) for xy in published[1:])
  page.draw_claims([other], made, tmp_path / "nothing.png")
  assert (tmp_path / "claims.png").stat().st_size > 5000 and len(shown) == 2
  assert not (tmp_path / "nothing.png").exists()


def test_the_page_says_what_is_left_of_many_tests():
  """Ranked, p of 0.01, 0.02, 0.04 and 0.8 of four tests are held against 0.0125, 0.025, 0.0375 and
  0.05: two stand, and one alone of 0.03 does not among two."""
  assert statistics.discoveries([0.8, 0.02, 0.04, 0.01]) == 2
  assert statistics.discoveries([0.03, 0.9]) == statistics.discoveries([]) == 0
  cells = [(method, 4, "", ()) for method in ("vespo", "grpo", "gspo")]
  claims = [
    Claim(f"{a} above {b}", None, (a, 4), (b, 4))
    for a, b in (("vespo", "grpo"), ("vespo", "gspo"), ("gspo", "vespo"))
  ]
  one = Experiment("one", "", cells, claims)
  found = [result("vespo", s, 0.8 + 0.01 * s) for s in range(3)]
  found += [result("grpo", s, 0.8 - 0.01 * s) for s in range(3)]  # 0, 2 and 4 points: p = 0.18
  found += [result("gspo", s, 0.5 + 0.012 * s) for s in range(3)]
  text = summary.many_tests([one], {"one": found})
  assert "Of 2 claims" in text and ") 1 have p < 0.05" in text  # and its reverse is the same test
  assert "give 0.1;\n" in text and "1 stand." in text
  assert "Of 0 claims" in summary.many_tests([one], {"one": found[:2]})
  # two experiments make one claim of the same runs, one of them with more seeds
  wide = dataclasses.replace(one, name="wide", claims=claims[1:2])
  more = found + [result("vespo", 3, 0.9), result("gspo", 3, 0.2)]
  assert 0.025 < stats.ttest_1samp([0.3, 0.298, 0.296, 0.7], 0).pvalue < 0.05
  for order in ([wide, one], [one, wide]):
    merged = summary.many_tests(order, {"one": found, "wide": more})
    assert "Of 2 claims" in merged and ") 1 have p < 0.05" in merged and "0 stand." in merged


def test_no_verdict_before_all_planned_seeds_are_there():
  cells = [("vespo", 4, "", ()), ("grpo", 4, "", ())]
  claims = [Claim("VESPO wins", None, ("vespo", 4), ("grpo", 4))]
  found = [result("vespo", s, 0.8 + 0.01 * s) for s in range(3)]
  found += [result("grpo", s, 0.5 + 0.012 * s) for s in range(3)]
  planned = lambda seeds: Experiment("toy", "A title", cells, claims, seeds=seeds)
  assert page.markdown(planned(3), found).count(f"| {statistics.HOLDS} |") == 1
  assert page.markdown(planned(8), found).count(f"| {statistics.TOO_FEW} |") == 1
  assert page.judged(planned(8), found) == [] != page.judged(planned(3), found)


def test_the_page_says_how_long_the_rest_takes():
  """A run of 10 minutes, two at a time: of five missing ones 25; alone, one at a time."""
  experiment = Experiment("toy", "", [("vespo", n, "x.py", (("n", n),)) for n in (4, 8)], [])
  alone = dataclasses.replace(experiment, name="slow", alone=True)
  done = {"key": experiment.runs(1)[0].key, "wall_time_s": 600.0}
  other = {"key": "of another seed", "wall_time_s": 6.0}
  text = summary.budget([experiment, alone], {"toy": [done, other], "slow": [done]})
  assert "| toy | 1 | 6 | 10.0 | 0.4 |\n| slow | 1 | 6 | 10.0 | 0.8 |\n| all | | | | 1.2 |" in text
  assert "| toy | 0 | 6 | 0.0 | 0.0 |" in summary.budget([experiment], {"toy": []})
