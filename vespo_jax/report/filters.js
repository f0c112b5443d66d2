// Which rollouts match, in what order, and how the address says so.

const STATUSES = ["ok", "wrong", "unparsed", "timeout", "error"];
const RANGES = {
  reward: "Reward", length: "Response tokens", staleness: "Staleness", update: "Update",
  weight_version: "Weight version",
};
const DEFAULTS = {
  q: "", status: "", sign: "", sort: "first update", view: "rollouts", pane: "one",
  colour: "log_ratio", at: "", ...Object.fromEntries(Object.keys(RANGES).map((name) => [name, ""])),
};

const by = (key, sign = 1) => (a, b) => {
  const [x, y] = [key(a), key(b)];
  return isNumber(x) && isNumber(y) ? sign * (x - y) : isNumber(y) - isNumber(x);
};
const SORTS = {
  "first update": by((x) => x.update),
  "last update": by((x) => x.update, -1),
  "lowest reward": by((x) => x.reward),
  "highest reward": by((x) => x.reward, -1),
  "largest |log W|": by((x) => isNumber(x.log_w) ? Math.abs(x.log_w) : x.log_w, -1),
  "largest |advantage|": by((x) => isNumber(x.advantage) ? Math.abs(x.advantage) : x.advantage, -1),
  "longest response": by((x) => x.length, -1),
  "shortest response": by((x) => x.length),
  "most stale": by((x) => x.staleness, -1),
};

// "low..high", either of which may be missing.
function within(value, range) {
  if (!range) return true;
  const [low, high] = range.split("..");
  return isNumber(value) && !(low !== "" && value < Number(low)) && !(high && value > Number(high));
}

function hasSign(value, sign) {
  if (!sign) return true;
  return isNumber(value) && Math.sign(value) === { positive: 1, zero: 0, negative: -1 }[sign];
}

function matching(rollouts, state) {
  const words = state.q.toLowerCase();
  const statuses = state.status ? state.status.split(",") : null;
  return rollouts.filter((rollout) =>
    (!statuses || statuses.includes(rollout.reward_status)) &&
    hasSign(rollout.advantage, state.sign) &&
    Object.keys(RANGES).every((name) => within(rollout[name], state[name])) &&
    (!words || rollout.haystack.includes(words))
  ).sort(SORTS[state.sort] ?? SORTS[DEFAULTS.sort]);
}

// The rollouts as they are in the page -> with what is their group's, a key and a text to search.
function unpacked(data) {
  return data.rollouts.map((packed) => {
    const group = data.groups[packed.group];
    const response = packed.response ?? packed.tokens.join("");
    const haystack = `${group.prompt}\n${response}\n${group.answer}`.toLowerCase();
    const key = `${group.update}-${group.group_id}-${packed.sample}`;
    return { ...group, ...packed, response, haystack, key };
  });
}

function fromAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(Object.entries(DEFAULTS).map(([key, value]) => [key, given.get(key) ?? value]));
}

let writing = 0;

// Once it has been quiet: browsers refuse more than a hundred changes in half a minute.
function toAddress(state) {
  clearTimeout(writing);
  writing = setTimeout(writeAddress, 300, state);
}

function writeAddress(state) {
  const changed = Object.entries(state).filter(([key, value]) => value !== DEFAULTS[key]);
  const hash = new URLSearchParams(changed).toString();
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}
