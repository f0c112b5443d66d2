"""The page loads nothing, runs nothing but its own script, and shows what was run."""

import base64
import hashlib
import html.parser
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vespo_jax import metrics, report
from vespo_jax.report import __main__ as command
from vespo_jax.report import page, rollouts, rundir

ANY_PNG = Path(__file__)  # whatever has bytes
HOSTILE = [
  "</script><script>alert(1)</script>",
  "<!--<script>",
  "<img src=x onerror=alert(1)>",
  '"><svg onload=alert(1)>',
  "]]> &lt;/script&gt; \u2028 \ud800 \x00 ${alert(1)}",
  "</SCRIPT\n>",
]


class Page(html.parser.HTMLParser):
  """The elements of a page with their attributes, and the text of each script and style."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.raw, self._raw = [], [], None
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    self._raw = tag if tag in ("script", "style") else None
    if self._raw:
      self.raw.append((tag, dict(attrs), ""))

  def handle_endtag(self, tag):
    self._raw = None

  def handle_data(self, data):
    if self._raw:
      tag, attrs, text = self.raw[-1]
      self.raw[-1] = (tag, attrs, text + data)

  def data(self):
    (data,) = [text for _, attrs, text in self.raw if attrs.get("id") == "rollout-data"]
    return json.loads(data)


def rendered(workdir):
  """The page without its figures, which take most of the time."""
  return page.render(rundir.load(workdir), {})


def text_of(workdir):
  return (workdir / "report.html").read_text(encoding="utf-8")


def test_the_page_loads_nothing_from_outside(reported):
  parsed = Page(text_of(reported))
  for tag, attrs in parsed.elements:
    assert tag not in ("link", "iframe", "object", "embed", "base"), tag
    for name in ("src", "href", "srcset", "action", "data", "background", "poster"):
      assert attrs.get(name, "data:").startswith("data:"), (tag, attrs)
  for tag, attrs, text in parsed.raw:
    if attrs.get("type") != "application/json":
      assert not re.search(r"https?:|//\w+\.|@import|url\(|fetch\(|XMLHttp|import\(", text), tag
  images = [attrs["src"] for tag, attrs in parsed.elements if tag == "img"]
  pngs = sorted(file.read_bytes() for file in (reported / "figures").iterdir())
  assert sorted(base64.b64decode(image.split(",")[1]) for image in images) == pngs


def test_the_policy_allows_exactly_our_script(reported):
  parsed = Page(text_of(reported))
  (policy,) = [a["content"] for t, a in parsed.elements if "http-equiv" in a and t == "meta"]
  (script,) = [text for tag, attrs, text in parsed.raw if tag == "script" and not attrs]
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_the_page_shows_what_was_run(reported):
  text = text_of(reported)
  for shown in ("vespo-n8", "finished", "reasoning_gym/chain_sum", "N = 8", "lambda_pos 3.0"):
    assert shown in text
  assert "24.3%" in text and "75.1%" in text and "+50.8 points" in text
  assert "(72.2&ndash;77.9)" in text and "200 held-out problems" in text
  assert "<code>objective.grpo.clip_low</code></td><td>0.2</td>" in text
  assert "All 1280 rollouts in" in text


def test_the_browser_has_what_was_sampled(reported):
  data = Page(text_of(reported)).data()
  first = json.loads((reported / "rollouts" / "000001.jsonl").read_text().splitlines()[0])
  group, rollout = data["groups"][0], data["rollouts"][0]
  for key in ("update", "group_id", "task", "prompt", "answer"):
    assert group[key] == first[key]
  for key in ("sample", "reward", "advantage", "log_w", "length", "staleness", "finish"):
    assert rollout[key] == first[key]
  assert rollout["tokens"] == first["token_text"] and "response" not in rollout
  assert rollout["log_ratio"] == first["token_log_ratio"]
  assert len(data["rollouts"]) == 1280 and len(data["groups"]) == 160
  assert data["groups"][-1]["update"] == 153


def test_the_page_says_what_it_leaves_out_and_what_was_never_recorded(small_run, monkeypatch):
  monkeypatch.setattr(rollouts, "MAX_ROLLOUTS", 32)
  config = {"rollouts": {"save_groups": 2}, "batch": {"prompts": 8, "samples_per_prompt": 8}}
  (small_run / "config.json").write_text(json.dumps(config))
  text = rendered(small_run)
  assert "32 of the 128 rollouts in <code>rollouts/</code>: whole groups" in text
  assert "recorded 2 of the 8 groups of each update" in text


def test_a_run_that_failed_shows_why_and_what_it_failed_on(small_run):
  (small_run / "failure").mkdir()
  last = (small_run / "rollouts" / "000009.jsonl").read_text()
  lines = [
    json.loads(line) | {"response": "<b>", "token_log_ratio": [math.nan]}
    for line in last.splitlines()[:8]
  ]
  (small_run / "failure" / "rollouts.jsonl").write_text(
    "".join(f"{json.dumps(x)}\n" for x in lines)
  )
  (small_run / "failure" / "report.json").write_text(
    json.dumps({"update": 9, "why": "its loss is <nan>"})
  )
  text = rendered(small_run)
  assert "All 72 rollouts in <code>rollouts/</code> and <code>failure/</code>" in text
  assert "The run could not go on: its loss is &lt;nan&gt;." in text
  found = Page(text).data()["rollouts"]
  assert len(found) == 64 + 8 and found[-1]["log_ratio"] == ["NaN"]  # in place of the 64 recorded
  with metrics.MetricsWriter(small_run / "metrics.jsonl") as writer:
    writer.truncate(7)  # it was resumed, and is not there again
    (small_run / "rollouts" / "000009.jsonl").unlink()
    text = rendered(small_run)
    assert "could not go on" not in text and len(Page(text).data()["rollouts"]) == 64
    for step in (8, 9, 10):
      writer.write({"step": step})
  (small_run / "rollouts" / "000009.jsonl").write_text(last)
  (small_run / "rollouts" / "000010.jsonl").write_text(last)
  text = rendered(small_run)
  assert "could not go on" not in text and len(Page(text).data()["rollouts"]) == 3 * 64


def test_a_run_that_diverged_is_a_word_in_the_header_and_the_error_below_it(small_run):
  why = "update 9 is bad: its loss is <nan>; the evidence is in runs/small/failure"
  result = {"stop_reason": f"Diverged: {why}", "updates": 8, "wall_time_s": 7500.0}
  (small_run / "result.json").write_text(json.dumps(result))
  (small_run / "failure").mkdir()
  (small_run / "failure" / "report.json").write_text(
    json.dumps({"update": 9, "why": "its loss is <nan>"})
  )
  text = rendered(small_run)
  assert '<span class="pill diverged">Diverged</span>' in text and "2 h 05 min" in text
  assert "<dt>Updates</dt><dd>8<" in text
  assert f"The run could not go on: {html.escape(why)}." in text
  assert text.count("its loss is") == 1
  result["stop_reason"] = "KeyboardInterrupt: "
  (small_run / "result.json").write_text(json.dumps(result | {"updates": 9}))
  text = rendered(small_run)
  assert '<span class="pill ">KeyboardInterrupt</span>' in text
  assert text.count("could not go on") == 1  # its update 9 is bad


def test_records_of_anything_make_a_page(small_run):
  line = {key: [10**400, {"x": [None]}] for key in (*rollouts.GROUP, *rollouts.NUMBERS)}
  line |= {key: [10**400, None, "x"] for key in rollouts.PER_TOKEN} | {"token_text": [1, None, {}]}
  (small_run / "rollouts" / "000001.jsonl").write_text(json.dumps(line) + "\n")
  first = Page(rendered(small_run)).data()["rollouts"][0]
  assert first["tokens"] == ["1", "None", "{}"] and first["reward"] == line["reward"]


def test_hostile_text_stays_text(small_run):
  clean = Page(rendered(small_run))
  file = small_run / "rollouts" / "000009.jsonl"
  lines = [json.loads(line) for line in file.read_text().splitlines()[: len(HOSTILE)]]
  for line, text in zip(lines, HOSTILE, strict=True):
    line |= dict.fromkeys(("prompt", "response", "answer", "task", "reward_status"), text)
    line["token_text"] = [text]
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  (small_run / "config.json").write_text(json.dumps({HOSTILE[0]: HOSTILE[2], "updates": 9}))
  (small_run / "result.json").write_text(json.dumps({"stop_reason": f"{HOSTILE[0]}: {HOSTILE[2]}"}))
  parsed = Page(rendered(small_run.rename(small_run.with_name("<b onload=alert(1)>"))))
  found = parsed.data()["rollouts"][-len(HOSTILE) :]
  assert [rollout["reward_status"] for rollout in found] == HOSTILE
  assert [rollout["tokens"] for rollout in found] == [[text] for text in HOSTILE]
  assert sum(tag == "script" for tag, _ in parsed.elements) == 2
  assert not any(name.startswith("on") for _, attrs in parsed.elements for name in attrs)
  assert {tag for tag, _ in parsed.elements} == {tag for tag, _ in clean.elements}


def test_hostile_results_and_metrics_stay_text(small_run):
  evaluation = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "problems": HOSTILE[2]}
  evaluation["samples_per_problem"] = HOSTILE[0]
  (small_run / "result.json").write_text(json.dumps({"evaluation_after": evaluation}))
  with (small_run / "metrics.jsonl").open("a") as file:
    file.write(json.dumps({"step": 1000, HOSTILE[2]: "nan"}) + "\n")
  run = rundir.load(small_run)
  parsed = Page(page._warnings(run) + page._accuracy(run, {"accuracy": ANY_PNG}))
  ours = {"section", "h2", "div", "p", "br", "figure", "img", "code"}
  assert {tag for tag, _ in parsed.elements} == ours
  assert [set(attrs) for tag, attrs in parsed.elements if tag == "img"] == [{"src", "alt"}]
  with (small_run / "metrics.jsonl").open("a") as file:
    file.write(json.dumps({"step": HOSTILE[0]}) + "\n")
  with pytest.raises(report.RunError, match="'step' is no number"):
    rundir.load(small_run)


def test_links_in_a_run_directory_are_not_followed_when_writing(small_run, tmp_path):
  precious = tmp_path / "precious"
  precious.write_text("precious")
  (small_run / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')
  (small_run / "figures").mkdir()
  for name in ("report.html", "report.html.tmp", "figures/reward.png"):
    (small_run / name).symlink_to(precious)
  report.write(small_run)
  assert precious.read_text() == "precious"
  assert not (small_run / "report.html").is_symlink()
  shutil.rmtree(small_run / "figures")
  (small_run / "figures").symlink_to(tmp_path)
  with pytest.raises(report.RunError, match="figures is a symbolic link"):
    report.write(small_run)


def test_model_text_enters_the_page_as_text_nodes_only():
  for name in page.SCRIPTS:
    script = page.asset(name)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script)


def test_a_run_that_goes_on_without_rollouts_config_or_result(small_run):
  (small_run / "config.json").unlink()
  for file in (small_run / "rollouts").iterdir():
    file.unlink()
  text = rendered(small_run)
  assert "not finished" in text and 'id="filters"' not in text and "Configuration (" not in text
  assert "Held-out accuracy" not in text and "<dd>9</dd>" in text


def test_an_asynchronous_run_says_its_bound(small_run):
  config = {"runtime": {"mode": "async", "max_staleness": 4}, "staleness": {"minibatches": 8}}
  (small_run / "config.json").write_text(json.dumps(config))
  text = rendered(small_run)
  assert "at most 4" in text and "N = 8" not in text


def test_values_that_cannot_be_drawn_are_told(small_run):
  with metrics.MetricsWriter(small_run / "metrics.jsonl") as writer:
    for step in (10, 11):
      writer.write({"step": step, "grad/norm": math.nan})
  warning = "<code>grad/norm</code> is not finite at 2 updates, first at 10"
  assert warning in rendered(small_run)


@pytest.mark.parametrize(
  "seconds, words",
  [(None, ""), (0.4, "0 s"), (59.6, "1 min 00 s"), (181, "3 min 01 s"), (7500, "2 h 05 min")],
)
def test_durations_read_as_people_say_them(seconds, words):
  assert page._duration(seconds) == words


def test_the_command_writes_the_report_and_says_where(small_run, capsys):
  assert command.main([f"--workdir={small_run}"]) == 0
  assert capsys.readouterr().out.strip() == str(small_run / "report.html")


def test_the_command_exits_2_with_one_message(small_run, tmp_path, capsys):
  empty = tmp_path / "empty"
  empty.mkdir()
  (small_run / "metrics.jsonl").write_text("")
  for workdir, message in (
    (tmp_path / "absent", "no run directory"),
    (empty, "no metrics.jsonl"),
    (small_run, "no update"),
  ):
    assert command.main([f"--workdir={workdir}"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert message in captured.err and str(workdir) in captured.err


def test_the_command_exits_1_where_it_cannot_write(small_run, capsys):
  (small_run / "figures").write_text("no folder")
  assert command.main([f"--workdir={small_run}"]) == 1
  captured = capsys.readouterr()
  assert captured.out == "" and len(captured.err.splitlines()) == 1
  assert captured.err.startswith("error: ") and str(small_run / "figures") in captured.err


def test_the_module_runs_as_a_program(tmp_path):
  program = [sys.executable, "-m", "vespo_jax.report", f"--workdir={tmp_path / 'absent'}"]
  done = subprocess.run(program, capture_output=True, text=True)
  assert done.returncode == 2 and done.stderr.startswith("error: ")
