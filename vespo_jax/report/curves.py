"""What is drawn: the table of figures, each a few panels of metric keys over updates."""

from __future__ import annotations

import dataclasses

BLUE, ORANGE, GREEN, PURPLE, GREY = "#2f6bd8", "#d9712b", "#23936a", "#8558c9", "#6b7280"
PALE = "#d5d9df"  # of areas


@dataclasses.dataclass(frozen=True)
class Line:
  """One metric: its key in a row, its name in the legend, its colour."""

  key: str
  label: str
  colour: str = BLUE


@dataclasses.dataclass(frozen=True)
class Panel:
  """Axes over updates that share a unit.

  Attributes:
    ylabel: the quantity and its unit.
    lines: the metrics drawn.
    spread: key of a standard deviation drawn as a band around the first line; "" for none.
    limits: the fixed ends of the vertical axis; None leaves an end to the data.
    percent: whether values are fractions to be labelled in percent.
    decades: whether a logarithmic axis is used when positive values span more than a decade.
    points: whether values are sparse measurements, drawn as points joined by a line.
    shares: whether each update's values are stacked as shares of their sum, first line lowest. It
      takes two of the lines to say anything.
  """

  ylabel: str
  lines: tuple[Line, ...]
  spread: str = ""
  limits: tuple[float | None, float | None] = (None, None)
  percent: bool = False
  decades: bool = False
  points: bool = False
  shares: bool = False


@dataclasses.dataclass(frozen=True)
class Figure:
  """One file of `figures/`: its name, where and how the page shows it, and what is drawn: panels,
  or the key of a histogram of log W over updates."""

  name: str
  section: str
  title: str
  caption: str
  panels: tuple[Panel, ...] = ()
  histogram: str = ""


FIGURES = (
  Figure(
    "reward",
    "Learning",
    "Reward of the sampled responses",
    "A group whose samples all earn the same reward has no advantage and teaches nothing.",
    (
      Panel("mean reward", (Line("reward/mean", "mean reward"),)),
      Panel(
        "equal groups",
        (Line("reward/zero_variance_fraction", "groups of equal reward", GREY),),
        limits=(0, None),
        percent=True,
      ),
    ),
  ),
  Figure(
    "evaluation",
    "Learning",
    "Held-out accuracy during the run",
    "Sampled at temperature 1 on prompts that are never trained on.",
    (
      Panel(
        "accuracy", (Line("evaluation/accuracy", "accuracy", GREEN),), percent=True, points=True
      ),
    ),
  ),
  Figure(
    "entropy",
    "Learning",
    "Entropy of the policy",
    "Mean over response tokens. A fall to zero ends exploration.",
    (Panel("nats per token", (Line("entropy/mean", "entropy", PURPLE),), limits=(0, None)),),
  ),
  Figure(
    "staleness",
    "Off-policy and stability",
    "Staleness of the trained tokens",
    "Updates committed between sampling a token and training on it.",
    (
      Panel(
        "updates",
        (Line("staleness/max", "max", ORANGE), Line("staleness/mean", "mean")),
        limits=(0, None),
      ),
      Panel(
        "stale samples",
        (Line("staleness/stale_fraction", "not of the published weights", PURPLE),),
        limits=(0, 1),
        percent=True,
      ),
    ),
  ),
  Figure(
    "mismatch",
    "Off-policy and stability",
    "Engine mismatch",
    "|log trainer - log sampler| of tokens that both computed with the same weights, and the share "
    "of their ratios outside each band.",
    (
      Panel(
        "nats per token",
        (
          Line("mismatch/abs_log_ratio_max", "max", ORANGE),
          Line("mismatch/abs_log_ratio_p95", "95%", PURPLE),
          Line("mismatch/abs_log_ratio_mean", "mean"),
        ),
        decades=True,
      ),
      Panel(
        "outside",
        (
          Line("mismatch/outside_0.8_1.25", "0.8 to 1.25"),
          Line("mismatch/outside_0.5_2", "0.5 to 2", ORANGE),
        ),
        limits=(0, None),
        percent=True,
      ),
    ),
  ),
  Figure(
    "log_weight",
    "Off-policy and stability",
    "Sequence importance weight, log W",
    "log W = log policy - log denominator (correction.denominator), summed over a response, with "
    "the rollout correction that VESPO takes into W. Band: one standard deviation.",
    (
      Panel("mean (nats)", (Line("weight/log_w_mean", "mean"),), spread="weight/log_w_std"),
      Panel(
        "extremes (nats)",
        (Line("weight/log_w_max", "max", GREEN), Line("weight/log_w_min", "min", ORANGE)),
      ),
    ),
  ),
  Figure(
    "log_weight_distribution",
    "Off-policy and stability",
    "Distribution of log W",
    "log W = log policy - log behaviour. Share of the sequences of each minibatch. Bins are narrow "
    "around 0 and open at both ends.",
    histogram="weight/log_w_histogram",
  ),
  Figure(
    "coefficient",
    "Off-policy and stability",
    "Coefficient of the objective, \u03d5",
    "What multiplies advantage and score in the gradient: 1 keeps a response whole, 0 drops it.",
    (
      Panel(
        "mean \u03d5",
        (
          Line("objective/coefficient_mean", "all", GREY),
          Line("objective/coefficient_mean_pos", "advantage > 0", GREEN),
          Line("objective/coefficient_mean_neg", "advantage < 0", ORANGE),
        ),
      ),
    ),
  ),
  Figure(
    "variance_bound",
    "Off-policy and stability",
    "Second moment of \u03d5 and its bound",
    "E[\u03d5\u00b2] is at most Z K E_Q[W], by sign of advantage (arXiv 2602.10693, prop. 3.1).",
    (
      Panel(
        "advantage > 0",
        (
          Line("weight/second_moment_pos", "E[\u03d5\u00b2]", GREEN),
          Line("weight/second_moment_bound_pos", "bound", GREY),
        ),
        limits=(0, None),
      ),
      Panel(
        "< 0",
        (
          Line("weight/second_moment_neg", "E[\u03d5\u00b2]", ORANGE),
          Line("weight/second_moment_bound_neg", "bound", GREY),
        ),
        limits=(0, None),
      ),
    ),
  ),
  Figure(
    "effective_sample_size",
    "Off-policy and stability",
    "Effective sample size",
    "(sum w)\u00b2 / (n sum w\u00b2) over a minibatch: 100% when all sequences weigh the same.",
    (
      Panel(
        "share of sequences",
        (
          Line("weight/ess_fraction", "of W"),
          Line("objective/ess_fraction", "of \u03d5", ORANGE),
        ),
        limits=(0, 1),
        percent=True,
      ),
    ),
  ),
  Figure(
    "kl",
    "Off-policy and stability",
    "KL divergences",
    "How far the policy has moved from what sampled the tokens, engine mismatch included, and from "
    "its anchors where a run has them.",
    (
      Panel(
        "nats per token",
        (
          Line("kl/behaviour_policy", "from behaviour", PURPLE),
          Line("kl/proximal_policy", "from proximal", ORANGE),
          Line("kl/policy_reference", "to reference", GREY),
        ),
      ),
    ),
  ),
  Figure(
    "gradient",
    "Off-policy and stability",
    "Gradient norm",
    "Global norm, before clipping.",
    (Panel("norm", (Line("grad/norm", "gradient norm", GREY),), decades=True),),
  ),
  Figure(
    "gradient_share",
    "Off-policy and stability",
    "Whose gradient it is",
    "Shares of the weight on the scores, by sign of the advantage and by quarter of the longest "
    "possible response.",
    (
      Panel(
        "advantage > 0",
        (Line("gradient_share/positive", "positive advantage", GREEN),),
        limits=(0, 1),
        percent=True,
      ),
      Panel(
        "by length",
        (
          Line("gradient_share/length_q1", "shortest", GREY),
          Line("gradient_share/length_q2", "2nd", BLUE),
          Line("gradient_share/length_q3", "3rd", PURPLE),
          Line("gradient_share/length_q4", "longest", ORANGE),
        ),
        limits=(0, 1),
        percent=True,
      ),
    ),
  ),
  Figure(
    "response",
    "Responses and speed",
    "Response length",
    "Truncated responses reached the token limit before they stopped.",
    (
      Panel("tokens", (Line("response/length", "mean length"),)),
      Panel(
        "truncated",
        (Line("response/truncated_fraction", "truncated responses", ORANGE),),
        limits=(0, None),
        percent=True,
      ),
    ),
  ),
  Figure(
    "throughput",
    "Responses and speed",
    "Throughput",
    "Response tokens per second of the sampler; the learner's are with its prompts, each once.",
    (
      Panel(
        "tokens per second",
        (
          Line("throughput/sampled_tokens_per_s", "sampled"),
          Line("throughput/trained_tokens_per_s", "trained", ORANGE),
        ),
        limits=(0, None),
      ),
    ),
  ),
  Figure(
    "timeline",
    "Responses and speed",
    "Who waited for whom",
    "Shares of the time of the learner and of the samplers, over the updates around each, and the "
    "orders that samplers had not finished.",
    (
      Panel(
        "learner",
        (
          Line("time/update_s", "updating", ORANGE),
          Line("time/publish_s", "publishing weights", PURPLE),
          Line("time/wait_s", "waiting", PALE),
        ),
        percent=True,
        shares=True,
      ),
      Panel(
        "samplers",
        (Line("time/sample_s", "sampling"), Line("time/sampler_wait_s", "waiting", PALE)),
        percent=True,
        shares=True,
      ),
      Panel("orders", (Line("time/queue_depth", "queue depth", GREY),), limits=(0, None)),
    ),
  ),
  Figure(
    "time",
    "Responses and speed",
    "Where the time goes",
    "Seconds of each update; the smoothed line spreads a rollout over the updates it feeds.",
    (
      Panel(
        "seconds per update",
        (
          Line("time/sample_s", "sampling"),
          Line("time/update_s", "updating", ORANGE),
          Line("time/wait_s", "waiting", GREY),
        ),
        limits=(0, None),
      ),
    ),
  ),
)
