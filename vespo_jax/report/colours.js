// How a token's number becomes a colour: blue and orange on both sides of a neutral value, which
// people with any kind of colour vision tell apart, or purple from nothing to full.

const LOWEST = -745; // of a log-prob whose exp is not 0

function policyLogprob(rollout, i) {
  const [behaviour, ratio] = [rollout.behaviour_logprob?.[i], rollout.log_ratio?.[i]];
  return isNumber(behaviour) && isNumber(ratio) ? Math.min(behaviour + ratio, 0) : undefined;
}

function isNumber(value) {
  return typeof value === "number";
}

// A mode: the value of token i, the side of the neutral value it is on (1, -1, or 0 where there is
// one side only) and how strong its colour is, from 0 to 1; and the words of its legend.
function modes(scales) {
  const around = (value, neutral, below, above) => [
    value < neutral ? -1 : 1,
    Math.min(Math.abs(value - neutral) / (value < neutral ? below : above), 1),
  ];
  const lower = Math.min(scales.coefficient, 1); // nothing is below 0
  return {
    log_ratio: {
      title: "log ratio, policy against behaviour",
      value: (rollout, i) => rollout.log_ratio?.[i],
      shade: (value) => around(value, 0, scales.log_ratio, scales.log_ratio),
      legend: [-scales.log_ratio, 0, scales.log_ratio],
      words: ["less likely now", "more likely now"],
    },
    probability: {
      title: "probability under the policy",
      value: (rollout, i) => {
        const logprob = policyLogprob(rollout, i);
        return logprob === undefined ? undefined : Math.exp(Math.max(logprob, LOWEST));
      },
      shade: (value) => [0, 1 - value],
      legend: [1, 0.5, 0],
      words: ["certain", "surprising"],
    },
    advantage: {
      title: "advantage",
      value: (rollout) => rollout.advantage,
      shade: (value) => around(value, 0, scales.advantage, scales.advantage),
      legend: [-scales.advantage, 0, scales.advantage],
      words: ["pushed down", "pushed up"],
    },
    coefficient: {
      title: "coefficient of the objective",
      value: (rollout, i) => rollout.coefficient?.[i],
      shade: (value) => around(value, 1, lower, scales.coefficient),
      legend: [1 - lower, 1, 1 + scales.coefficient],
      words: ["damped", "amplified"],
    },
    none: {
      title: "nothing", value: () => undefined, shade: () => [0, 0], legend: [], words: [],
    },
  };
}

// Colours a token's element.
function paint(node, mode, rollout, i) {
  const value = mode.value(rollout, i);
  if (!isNumber(value)) return;
  const [side, strength] = mode.shade(value);
  if (!(strength > 0)) return;
  node.classList.add(side > 0 ? "up" : side < 0 ? "down" : "odd");
  node.style.setProperty("--t", strength.toFixed(3));
}

function legend(mode) {
  if (!mode.legend.length) return [];
  const bar = element("div", `bar ${mode.legend[0] === 1 ? "one" : "two"}`);
  const ticks = element("div", "ticks", ...mode.legend.map((x) => element("span", "", String(+x.toPrecision(4)))));
  const words = element("div", "ticks words", ...mode.words.map((x) => element("span", "", x)));
  return [bar, ticks, words];
}

// [name, exact value] of all that is known of a token.
function numbersOf(rollout, i) {
  const probability = (x) => (isNumber(x) ? `${Math.exp(x).toPrecision(4)}  (log ${x.toPrecision(6)})` : "\u2013");
  const ratio = rollout.log_ratio?.[i];
  return [
    ["log ratio", isNumber(ratio) ? `${ratio}  (ratio ${Math.exp(ratio).toPrecision(5)})` : format(ratio)],
    ["policy", probability(policyLogprob(rollout, i))],
    ["behaviour", probability(rollout.behaviour_logprob?.[i])],
    ["advantage", String(rollout.advantage ?? "\u2013")],
    ["coefficient", String(rollout.coefficient?.[i] ?? "\u2013")],
  ];
}
