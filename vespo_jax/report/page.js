"use strict";
// The rollout browser. Model text only ever enters the page as text nodes.

const PAGE = 24;
const rollouts = JSON.parse(document.getElementById("rollout-data").textContent);
const form = document.getElementById("filters");

const sorts = {
  update: (a, b) => a.update - b.update,
  "lowest reward": (a, b) => a.reward - b.reward,
  "highest reward": (a, b) => b.reward - a.reward,
  "largest |log W|": (a, b) => Math.abs(b.log_w) - Math.abs(a.log_w),
  "longest response": (a, b) => b.response.length - a.response.length,
};

function element(tag, className, ...children) {
  const node = document.createElement(tag);
  node.className = className;
  node.append(...children);
  return node;
}

function format(value) {
  if (typeof value !== "number") return String(value ?? "\u2013");
  return Number.isInteger(value) ? String(value) : value.toFixed(3);
}

function text(title, value) {
  const box = element("pre", "");
  value.split("\n").forEach((line, index) => {
    if (index) box.append(element("span", "newline"), "\n");
    box.append(line);
  });
  return element("div", "", element("h3", "", title), box);
}

function card(rollout) {
  const numbers = [
    ["update", rollout.update], ["reward", rollout.reward], ["status", rollout.reward_status],
    ["finish", rollout.finish], ["advantage", rollout.advantage], ["log W", rollout.log_w],
    ["weight version", rollout.weight_version], ["group", rollout.group_id],
    ["sample", rollout.sample], ["task", rollout.task], ["example", rollout.example_id],
    ["answer", rollout.answer],
  ].map(([name, value]) => element("span", "", `${name} `, element("b", "", format(value))));
  const node = element("article", "rollout", element("div", "numbers", ...numbers),
    element("div", "texts", text("Prompt", rollout.prompt), text("Response", rollout.response)));
  if (["ok", "wrong"].includes(rollout.reward_status)) node.classList.add(rollout.reward_status);
  return node;
}

function within(value, low, high) {
  return (low === "" || value >= Number(low)) && (high === "" || value <= Number(high));
}

function matching() {
  const get = (name) => form.elements[name].value;
  const words = get("search").toLowerCase();
  return rollouts.filter((rollout) =>
    within(rollout.reward, get("reward_low"), get("reward_high")) &&
    within(rollout.update, get("update_low"), get("update_high")) &&
    (get("status") === "" || rollout.reward_status === get("status")) &&
    `${rollout.prompt}\n${rollout.response}\n${rollout.answer}`.toLowerCase().includes(words)
  ).sort(sorts[get("sort")]);
}

function show(limit) {
  const found = matching();
  const more = document.getElementById("more");
  document.getElementById("found").textContent =
    found.length ? `${found.length} of ${rollouts.length} match` : "No rollout matches";
  document.getElementById("list").replaceChildren(...found.slice(0, limit).map(card));
  more.hidden = found.length <= limit;
  more.onclick = () => show(limit + PAGE);
}

if (form) {
  const statuses = [...new Set(rollouts.map((rollout) => rollout.reward_status))].sort();
  form.elements.status.append(...statuses.map((status) => new Option(status, status)));
  form.elements.sort.append(...Object.keys(sorts).map((name) => new Option(name, name)));
  form.addEventListener("input", () => show(PAGE));
  form.addEventListener("submit", (event) => event.preventDefault());
  show(PAGE);
}
