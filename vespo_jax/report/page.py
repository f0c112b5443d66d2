"""Builds the report page: one HTML file that loads nothing from anywhere.

Model text is untrusted. It travels as JSON in which no `<` survives, enters the page only as text
nodes, and the page's content security policy runs one script: ours, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import vespo_jax
from vespo_jax.report import curves, rollouts
from vespo_jax.report.rundir import Run, evaluations

SCRIPTS = ("text.js", "colours.js", "filters.js", "browser.js")  # one script, in this order
STYLES = ("page.css", "browser.css")


def render(run: Run, figures: Mapping[str, Path]) -> str:
  """The page as HTML text.

  Args:
    run: what was run.
    figures: the drawn PNG files by name; they are embedded.
  """
  script = "\n".join(map(asset, SCRIPTS))
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  word, _ = state(run)
  return Template(asset("page.html")).substitute(
    policy="default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{digest}'",
    name=html.escape(run.name),
    css="\n".join(map(asset, STYLES)),
    state=html.escape(word),
    state_class=word.lower() if word in ("finished", "Diverged") else "",
    facts="\n".join(_fact(*fact) for fact in _facts(run)),
    warnings=_warnings(run),
    accuracy=_accuracy(run, figures),
    curves=_curves(figures),
    rollouts=_browser(run) if run.rollouts else "",
    config=_config(run.config),
    version=vespo_jax.__version__,
    data=_embed(rollouts.pack(run.rollouts)),
    script=script,
  )


def asset(name: str) -> str:
  """The text of a file of this package."""
  return (resources.files("vespo_jax.report") / name).read_text(encoding="utf-8")


def _embed(value: Any) -> str:
  """JSON that cannot end, or comment out, the script element around it."""
  return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def state(run: Run) -> tuple[str, str]:
  """What became of a run, in a word, and the message of the error that ended it, or ""."""
  word, _, message = str(run.result.get("stop_reason", "not finished")).partition(":")
  return word, message.strip()


def _facts(run: Run) -> list[tuple[str, str, str]]:
  """(name, value, remark) of what was run; what the config does not say is left out."""
  objective = run.setting("objective.name")
  options = run.setting(f"objective.{objective}") or {}
  done, planned = run.updates, run.setting("updates")
  minibatches, prompts = run.setting("staleness.minibatches"), run.setting("batch.prompts")
  asynchronous = run.setting("runtime.mode") == "async"
  rate, seed = run.setting("optimizer.learning_rate"), run.setting("seed")
  facts = [
    ("Objective", objective, ", ".join(f"{key} {value}" for key, value in options.items())),
    ("Task", run.setting("task.name"), ""),
    ("Staleness", f"N = {minibatches}" if minibatches and not asynchronous else None,
     "minibatches per rollout batch"),
    ("Staleness", f"at most {run.setting('runtime.max_staleness')}" if asynchronous else None,
     "updates, asynchronous"),
    ("Minibatch", f"{prompts} prompts" if prompts else None,
     f"{run.setting('batch.samples_per_prompt')} samples each"),
    ("Updates", f"{done}", f"of {planned}" if planned else ""),
    ("Wall time", _duration(run.result.get("wall_time_s", run.rows[-1].get("wall_time_s"))), ""),
    ("Learning rate", rate and f"{rate:g}", "" if seed is None else f"seed {seed}"),
  ]  # fmt: skip
  return [(name, str(value), remark) for name, value, remark in facts if value]


def _fact(name: str, value: str, remark: str) -> str:
  small = f"<small>{html.escape(remark)}</small>" if remark else ""
  return f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}{small}</dd></div>"


def _duration(seconds: float | None) -> str:
  """Seconds as people say them: "48 s", "3 min 01 s", "2 h 05 min"; "" for None."""
  if seconds is None:
    return ""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours} h {minutes:02} min"
  return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _warnings(run: Run) -> str:
  """What the figures cannot show: why a run could not go on, and values that are not finite."""
  steps: dict[str, list[int]] = {}
  for row in run.rows:
    for key, value in row.items():
      if isinstance(value, float) and not math.isfinite(value):
        steps.setdefault(key, []).append(row["step"])
  _, message = state(run)
  why = message or run.failure
  found = [f"The run could not go on: {html.escape(why)}."] if why else []
  found += [
    f"<code>{html.escape(key)}</code> is not finite at {len(at)} "
    f"update{'s' if len(at) > 1 else ''}, first at {html.escape(str(at[0]))}; these values are not "
    "drawn."
    for key, at in sorted(steps.items())
  ]
  return "\n".join(f'<p class="warning">{sentence}</p>' for sentence in found)


def _accuracy(run: Run, figures: Mapping[str, Path]) -> str:
  found = evaluations(run.result)
  if not found:
    return ""
  last = {key: html.escape(str(value)) for key, value in list(found.values())[-1].items()}
  shown = [f"{evaluation['accuracy']:.1%}" for evaluation in found.values()]
  sentence = ", ".join(
    f"{when} training {at} ({100 * evaluation['low']:.1f}&ndash;{100 * evaluation['high']:.1f})"
    for at, (when, evaluation) in zip(shown, found.items(), strict=True)
  )
  if len(found) == 2:
    change = found["after"]["accuracy"] - found["before"]["accuracy"]
    sentence += f": {100 * change:+.1f} points"
  return f"""<section><h2>Held-out accuracy</h2><div class="card accuracy"><div>
<p class="big">{' <span class="arrow">&rarr;</span> '.join(shown)}</p>
<p class="soft">{sentence.capitalize()}.<br>{last["problems"]} held-out problems,
{last["samples_per_problem"]} samples each, temperature 1; in brackets, confidence intervals.</p>
</div>
{figure(figures["accuracy"].read_bytes(), "Held-out accuracy", "")}</div></section>"""


def _curves(figures: Mapping[str, Path]) -> str:
  drawn: dict[str, list[str]] = {}
  for each in curves.FIGURES:
    if each.name in figures:
      shown = figure(figures[each.name].read_bytes(), each.title, each.caption)
      drawn.setdefault(each.section, []).append(shown)
  return sections(drawn)


def sections(drawn: Mapping[str, Sequence[str]]) -> str:
  """The figures of each section, by its title."""
  return "\n".join(
    f'<section><h2>{title}</h2><div class="grid">{"".join(shown)}</div></section>'
    for title, shown in drawn.items()
  )


def figure(png: bytes, title: str, caption: str) -> str:
  """An embedded image."""
  source = "data:image/png;base64," + base64.b64encode(png).decode()
  below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
  return f'<figure><img src="{source}" alt="{html.escape(title)}">{below}</figure>'


def _browser(run: Run) -> str:
  shown, total = len(run.rollouts), run.rollouts_total
  where = "<code>rollouts/</code>" + (" and <code>failure/</code>" if run.failure else "")
  if shown < total:
    kept = (
      f"{shown} of the {total} rollouts in {where}: whole groups spread over the run, as many of "
      "low as of high mean reward"
    )
  else:
    kept = f"All {shown} rollouts in {where}"
  recorded, prompts = run.setting("rollouts.save_groups"), run.setting("batch.prompts")
  if isinstance(recorded, int) and isinstance(prompts, int) and 0 <= recorded < prompts:
    kept += f"; the run recorded {recorded} of the {prompts} groups of each update"
  return Template(asset("browser.html")).substitute(kept=kept)


def _config(config: Mapping[str, Any]) -> str:
  values = flatten(config)
  if not values:
    return ""
  rows = "\n".join(
    f"<tr><td><code>{html.escape(key)}</code></td><td>{html.escape(json.dumps(value))}</td></tr>"
    for key, value in values.items()
  )
  return f"""<details><summary>Configuration ({len(values)} values)</summary>
<div class="card"><table>{rows}</table></div></details>"""


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """The values of a nested config by dotted name."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, dict):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat
