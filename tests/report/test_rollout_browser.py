"""The rollout browser in a real browser, on 2,000 rollouts."""

import json
import math
import re
import tempfile
from pathlib import Path

import chromium
import numpy as np
import pytest
import synthetic_run

from vespo_jax.report import page, rollouts, rundir

PROGRAM = chromium.find()
needs_chromium = pytest.mark.skipif(
  PROGRAM is None, reason="no Chromium on PATH, and CHROMIUM names none"
)
HOSTILE = [
  "</script><script>window.pwned = 1</script>",
  "<img src=x onerror='window.pwned = 1'><!--",
  "\u202egnp.exe \u2066\u200f\u200d\ufeff \x00\x1b[2J\x9b31m \ud800 \udbff end \udc00",
  "\u2028\u2029\U000e0041\U000f0000 a" + "\u0301" * 3000,
  "${alert(1)} {{7*7}} &lt;b&gt; \r\n\ttab",
]
SPELT = {
  2: ("U+202Egnp.exe", "U+2066", "U+0000", "U+001B[2J", "U+009B", "U+D800", "U+DBFF end U+DC00"),
  3: ("U+2028", "U+2029", "U+E0041", "U+F0000", "a3000 marks"),
  4: ("${alert(1)} {{7*7}} &lt;b&gt; U+000D",),
}
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


@pytest.fixture(scope="module")
def browser():
  with tempfile.TemporaryDirectory() as profile:
    with chromium.Browser(PROGRAM, Path(profile)) as browser:
      browser.look()
      yield browser


@pytest.fixture(scope="module")
def many(tmp_path_factory):
  """(the address of a page of 2,000 rollouts, these as they were recorded)."""
  workdir = tmp_path_factory.mktemp("runs") / "many"
  return _page(synthetic_run.write(workdir, updates=250, result=False))


def _page(workdir):
  run = rundir.load(workdir)
  path = workdir / "report.html"
  path.write_text(page.render(run, {}), encoding="utf-8")
  return path.as_uri(), run.rollouts


def key(record):
  return f"{record['update']}-{record['group_id']}-{record['sample']}"


FILTERS = {
  "": lambda r: True,
  "reward=1..1": lambda r: r["reward"] == 1,
  "status=wrong": lambda r: r["reward_status"] == "wrong",
  "status=ok,unparsed": lambda r: r["reward_status"] in ("ok", "unparsed"),
  "sign=positive": lambda r: r["advantage"] > 0,
  "sign=zero": lambda r: r["advantage"] == 0,
  "sign=negative&length=20..": lambda r: r["advantage"] < 0 and r["length"] >= 20,
  "length=..12&staleness=3..5": lambda r: r["length"] <= 12 and 3 <= r["staleness"] <= 5,
  "weight_version=100..": lambda r: r["weight_version"] >= 100,
  "update=41..97&reward=..0.5": lambda r: 41 <= r["update"] <= 97 and r["reward"] <= 0.5,
  "q=SO+1": lambda r: "so 1" in f"{r['prompt']}\n{r['response']}\n{r['answer']}".lower(),
  "q=no+such+text": lambda r: False,
}


@needs_chromium
def test_filters_find_what_python_finds(browser, many):
  """Through the form, as people set them, on one page; and none of it is everything."""
  address, records = many
  assert len(records) == 2000
  browser.open(address)
  for query, wanted in FILTERS.items():
    browser.run("document.querySelector('#filters button[type=reset]').click()")
    for part in filter(None, query.split("&")):
      name, _, value = part.partition("=")
      browser.run(f"{SET}({json.dumps(name)}, {json.dumps(value.replace('+', ' '))})")
    expected = [record for record in records if wanted(record)]
    told = browser.run("document.getElementById('found').textContent")
    if not expected:
      assert told == "None of 2000 rollouts matches"
      continue
    assert told.startswith(f"{len(expected)} of 2000 rollouts match"), (query, told)
    assert f"in {len({(r['update'], r['group_id']) for r in expected})} groups" in told
    mean = np.mean([r["reward"] for r in expected])
    assert abs(float(re.search(r"mean reward ([\d.]+)", told)[1]) - mean) < 6e-4
    rows = "document.getElementById('list').ariaActiveDescendantElement?.ariaSetSize"
    assert int(browser.run(rows)) == len(expected)
    names = {part.split("=")[0] for part in query.split("&") if part}
    assert {part.split("=")[0] for part in browser.run(ADDRESS).split("&") if part} == names
  assert browser.errors == []


SET = """((name, value) => {
  const form = document.getElementById("filters").elements;
  if (name === "status") {
    for (const box of form.status) if (value.split(",").includes(box.value)) box.click();
  } else if (value.includes("..")) {
    [form[`${name}_from`].value, form[`${name}_to`].value] = value.split("..");
    form[`${name}_to`].dispatchEvent(new Event("input", { bubbles: true }));
  } else {
    form[name].value = value;
    form[name].dispatchEvent(new Event("input", { bubbles: true }));
  }
})"""
ADDRESS = "new Promise((done) => setTimeout(() => done(location.hash.slice(1)), 320))"
SELECTED = (
  """[...document.querySelectorAll("#shown .numbers")].map((x) => x.textContent).join(" ")"""
)
ORDERS = {
  "last update": lambda r: -r["update"],
  "lowest reward": lambda r: r["reward"],
  "largest |log W|": lambda r: -abs(r["log_w"]),
  "largest |advantage|": lambda r: -abs(r["advantage"]),
  "longest response": lambda r: -r["length"],
  "most stale": lambda r: -r["staleness"],
}


@needs_chromium
def test_orders_and_keys_lead_to_what_python_sorts(browser, many):
  address, records = many
  browser.open(address)
  for order, rank in ORDERS.items():
    browser.run(f"{SET}('sort', {json.dumps(order)})")
    expected = sorted(records, key=rank)
    browser.run("document.getElementById('list').focus()")
    places = (("Home", 0), ("j", 1), ("ArrowDown", 2), ("k", 1), ("End", 1999), ("ArrowUp", 1998))
    for pressed, i in places:
      browser.press(pressed)
      update, group, number = key(expected[i]).split("-")
      shown = browser.run(SELECTED)
      assert f"update {update}group {group}task" in shown, (order, pressed)
      assert f"sample {number}reward" in shown, (order, pressed)
    assert browser.run("document.querySelectorAll('.row').length") < 60  # of 2,000
    active = "document.querySelector('.row[aria-selected=true]')"
    assert browser.run(f"{active}.getBoundingClientRect().bottom <= innerHeight * 2")
    assert browser.run(f"{active}.ariaPosInSet") == "1999"
  assert browser.errors == []


@needs_chromium
def test_the_address_brings_back_what_was_looked_at(browser, many):
  address, records = many
  wanted = [r for r in records if r["reward_status"] == "wrong" and r["staleness"] >= 2]
  chosen = sorted(wanted, key=lambda r: -r["length"])[7]
  browser.open(address)
  for name, value in (("status", "wrong"), ("staleness", "2.."), ("sort", "longest response")):
    browser.run(f"{SET}('{name}', '{value}')")
  browser.press(*"jjjjjjj", "c", "g")
  link = f"{address}#{browser.run(ADDRESS)}"
  before = browser.run("document.getElementById('detail').outerHTML")
  assert f"at={key(chosen)}" in link and "colour=probability" in link and "pane=all" in link
  browser.open(link)
  assert browser.run("document.getElementById('detail').outerHTML") == before
  assert browser.run("document.getElementById('found').textContent").startswith(f"{len(wanted)} of")
  assert browser.run(
    "document.querySelector('#rollouts').getBoundingClientRect().top < innerHeight"
  )
  browser.run("location.hash = 'colour=<b>&sort=x&view=y&at=1&pane=z&reward=a..b&status=nothing'")
  assert browser.run(ADDRESS) and browser.errors == []


TOKENS = """[...document.querySelectorAll("#shown pre[data-key]")].map((pre) =>
  [...pre.querySelectorAll(".token")].map((x) => [
    ["up", "down", "odd"].find((side) => x.classList.contains(side)) ?? "",
    x.style.getPropertyValue("--t"), x.textContent.replace("\\u21b5", "")]))"""


def shade(colour, record, i, scales):
  """(side, strength) of a token's colour, as the legend says."""
  ratio, behaviour = record["token_log_ratio"][i], record["token_behaviour_logprob"][i]
  if colour == "probability":
    return "odd", 1 - math.exp(min(behaviour + ratio, 0))
  if colour == "coefficient":
    value = record["token_coefficient"][i] - 1
    scale = scales["coefficient"]
    return ("up", value / scale) if value > 0 else ("down", -value / min(scale, 1))
  value = ratio if colour == "log_ratio" else record["advantage"]
  return "up" if value > 0 else "down", abs(value) / scales[colour]


@needs_chromium
def test_every_token_has_the_colour_of_its_number(browser, many):
  address, records = many
  scales = rollouts.pack(records)["scales"]
  rng = np.random.default_rng(0)
  browser.open(address)
  for colour in ("log_ratio", "probability", "advantage", "coefficient"):
    seen = set()
    for group in rng.choice(250, 3, replace=False):
      mine = records[8 * group : 8 * group + 8]
      browser.run(f"location.hash = 'colour={colour}&pane=all&at={key(mine[0])}'")
      shown = browser.run(f"new Promise((done) => setTimeout(() => done({TOKENS}), 50))")
      assert len(shown) == 8
      for record, tokens in zip(mine, shown, strict=True):
        assert [text for _, _, text in tokens] == record["token_text"]
        for i, (side, strength, _) in enumerate(tokens):
          expected_side, expected = shade(colour, record, i, scales)
          if side:
            assert side == expected_side
            seen.add(side)
          assert abs(float(strength or 0) - min(expected, 1)) < 6e-4
    assert seen == ({"odd"} if colour == "probability" else {"up", "down"})
  assert browser.errors == []


@needs_chromium
def test_a_token_tells_its_exact_numbers(browser, many):
  address, records = many
  record = records[777]
  browser.open(f"{address}#at={key(record)}")
  browser.run("document.querySelector('#shown pre[data-key]').focus()")
  for i in range(3):
    browser.press("ArrowRight")
    told = browser.run("document.getElementById('tip').innerText")
    ratio = record["token_log_ratio"][i]
    policy = record["token_behaviour_logprob"][i] + ratio
    assert f"token {i + 1} of {len(record['token_text'])}" in told
    assert float(re.search(r"log ratio\s+(\S+)", told)[1]) == ratio
    assert abs(float(re.search(r"policy\s+(\S+)", told)[1]) - math.exp(min(policy, 0))) < 1e-4
    assert float(re.search(r"advantage\s+(\S+)", told)[1]) == record["advantage"]
    assert float(re.search(r"coefficient\s+(\S+)", told)[1]) == record["token_coefficient"][i]
  browser.press("Escape")
  assert browser.run("document.getElementById('tip').hidden")


@needs_chromium
def test_a_list_of_groups_shows_all_samples_side_by_side(browser, many):
  address, records = many
  browser.open(f"{address}#view=groups&status=unparsed")
  wanted = [r for r in records if r["reward_status"] == "unparsed"]
  first = [r for r in records if (r["update"], r["group_id"]) == _group(wanted[0])]
  sizes = browser.run("[...document.querySelectorAll('.row')].map((x) => Number(x.ariaSetSize))")
  assert set(sizes) == {len({_group(r) for r in wanted})}
  cards = browser.run(
    "[...document.querySelectorAll('#shown .rollout')].map((x) => [x.className, x.innerText])"
  )
  assert len(cards) == len(first) == 8
  for record, (classes, text) in zip(first, cards, strict=True):
    assert f"sample {record['sample']}" in text and record["reward_status"] in classes.split()
    assert ("beside" in classes) == (record["reward_status"] != "unparsed")
  tops = browser.run(
    "[...document.querySelectorAll('#shown .rollout')].map((x) => x.getBoundingClientRect().top)"
  )
  assert len(set(tops)) < 8  # some of them beside each other
  browser.look(width=400)
  assert browser.run("document.documentElement.scrollWidth <= innerWidth")
  browser.look()


def _group(record):
  return record["update"], record["group_id"]


@needs_chromium
def test_hostile_text_is_seen_and_does_nothing(browser, tmp_path):
  workdir = synthetic_run.write(tmp_path / "small", updates=1, result=False, evaluate_every=0)
  file = workdir / "rollouts" / "000001.jsonl"
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  for i, line in enumerate(lines):
    text = HOSTILE[i // 8 % len(HOSTILE)]
    line |= dict.fromkeys(("prompt", "answer", "task", "finish", "response"), text)
    line |= {"reward_status": text[:40] if i % 8 < 2 else line["reward_status"]}
    line["token_text"] = [text[:5], text[5:]]
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  address, _ = _page(workdir)
  for view in ("view=groups", ""):
    browser.open(f"{address}#{view}")
    for i in range(len(HOSTILE)):
      seen = browser.run("document.getElementById('rollouts').textContent")
      assert not UNSEEN.search(seen), repr(UNSEEN.search(seen))
      assert browser.run("document.scripts.length") == 2
      browser.press(*"j" * (1 if "groups" in view else 8))
      told = browser.run("document.getElementById('shown').textContent")
      for spelt in SPELT.get(i + 1, ()):
        assert spelt in told, (view, i)
    assert browser.run("typeof window.pwned") == "undefined"
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.errors == []
    assert {request.split(":")[0] for request in browser.requests} == {"file"}


@needs_chromium
def test_every_control_has_a_name_and_the_list_says_where_one_is(browser, many):
  browser.open(many[0])
  nameless = browser.run("""[...document.querySelectorAll(
    "#rollouts input, #rollouts select, #rollouts button, #rollouts [tabindex]")].filter((x) =>
    !(x.labels?.length || x.ariaLabel || x.textContent.trim())).map((x) => x.outerHTML)""")
  assert nameless == []
  browser.run("document.getElementById('list').focus()")
  browser.press("End", "j")
  tree = browser.call("Accessibility.getFullAXTree")["nodes"]
  roles = [node["role"]["value"] for node in tree if not node["ignored"]]
  assert "listbox" in roles and "search" in roles and roles.count("option") > 5
  (chosen,) = [
    node
    for node in tree
    if node["role"]["value"] == "option"
    and any(p["name"] == "selected" and p["value"]["value"] for p in node["properties"])
    and "reward" in node["name"]["value"]
  ]
  assert "upd 249" in chosen["name"]["value"]


def test_colours_leave_the_text_readable_and_are_told_apart_by_everyone():
  """WCAG's contrast of text on full colours; and both ends as seen without the red, green or blue
  cones (Machado, Oliveira and Fernandes 2009, severity 1), as far apart as two clear colours."""
  css = page.asset("browser.css") + page.asset("page.css")
  ends = [
    [np.array(list(map(int, found.split()))) for found in re.findall(rf"--{name}: ([\d ]+);", css)]
    for name in ("up", "down", "odd")
  ]
  inks = re.findall(r"--ink: (#\w+);", css)
  assert [len(x) for x in (*ends, inks)] == [2] * 4
  for theme, ink in enumerate(inks):
    text = np.array([int(ink[i : i + 2], 16) for i in (1, 3, 5)])
    for end in ends:
      assert _contrast(text, end[theme]) >= 4.5, (theme, end[theme])
    up, down = _linear(ends[0][theme]), _linear(ends[1][theme])
    for name, matrix in CONES.items():
      distance = np.linalg.norm(_lab(matrix @ up) - _lab(matrix @ down))
      assert distance > 40, (theme, name, distance)


CONES = {
  "protan": np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
     [-0.003882, -0.048116, 1.051998]]
  ),
  "deutan": np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
     [-0.011820, 0.042940, 0.968881]]
  ),
  "tritan": np.array(
    [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
     [0.004733, 0.691367, 0.303900]]
  ),
}  # fmt: skip


def _linear(rgb):
  x = np.asarray(rgb) / 255
  return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def _contrast(one, other):
  light = [_linear(x) @ [0.2126, 0.7152, 0.0722] for x in (one, other)]
  return (max(light) + 0.05) / (min(light) + 0.05)


def _lab(linear):
  to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
  x, y, z = np.cbrt(to_xyz @ np.clip(linear, 1e-4, 1) / np.array([0.9505, 1.0, 1.089]))
  return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
