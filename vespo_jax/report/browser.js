// The rollout browser: a list of which only the rows in sight exist, and what is selected beside it.

const ROW = 58; // pixels, as in the style sheet
const MARGIN = 6; // rows made above and below those in sight
const $ = (id) => document.getElementById(id);

function browse(data) {
  const rollouts = unpacked(data);
  const everyMode = modes(data.scales);
  const form = $("filters");
  let state = fromAddress();
  let found = []; // rollouts
  let items = []; // of the list: arrays of rollouts, one or a group
  let selected = 0;
  let token = null; // the one whose numbers are shown

  const inGroup = new Map();
  for (const rollout of rollouts) {
    inGroup.set(rollout.group, [...(inGroup.get(rollout.group) ?? []), rollout]);
  }

  // The form.

  function makeForm() {
    for (const status of new Set([...STATUSES, ...rollouts.map((x) => x.reward_status).sort()])) {
      const count = rollouts.filter((x) => x.reward_status === status).length;
      const box = element("input");
      Object.assign(box, { type: "checkbox", name: "status", value: status, disabled: !count });
      const known = STATUSES.includes(status) ? status : "other";
      $("status").append(element("label", "", box, element("i", `dot ${known}`),
        element("span", "", ...visible(status || "none", true)), element("small", "", String(count))));
    }
    for (const [name, title] of Object.entries(RANGES)) {
      const ends = ["from", "to"].map((end) => {
        const input = element("input");
        Object.assign(input, { type: "number", step: "any", name: `${name}_${end}`, placeholder: end });
        input.setAttribute("aria-label", `${title} ${end}`);
        return input;
      });
      $("ranges").append(element("div", "range", element("span", "", title), ...ends));
    }
    form.elements.sort.append(...Object.keys(SORTS).map((name) => new Option(name, name)));
    $("colour").append(...Object.entries(everyMode).map(([name, mode]) => new Option(mode.title, name)));
  }

  function fillForm() {
    for (const name of ["q", "sign", "sort", "view"]) form.elements[name].value = state[name];
    const statuses = state.status.split(",");
    for (const box of $("status").querySelectorAll("input")) box.checked = statuses.includes(box.value);
    for (const name of Object.keys(RANGES)) {
      const [low, high] = state[name].split("..");
      form.elements[`${name}_from`].value = low ?? "";
      form.elements[`${name}_to`].value = high ?? "";
    }
    $("colour").value = state.colour in everyMode ? state.colour : DEFAULTS.colour;
  }

  function readForm() {
    const change = {};
    for (const name of ["q", "sign", "sort", "view"]) change[name] = form.elements[name].value;
    change.status = [...$("status").querySelectorAll("input:checked")].map((x) => x.value).join(",");
    for (const name of Object.keys(RANGES)) {
      const [low, high] = ["from", "to"].map((end) => form.elements[`${name}_${end}`].value);
      change[name] = low || high ? `${low}..${high}` : "";
    }
    return change;
  }

  // The list.

  function search() {
    found = matching(rollouts, state);
    items = found.map((x) => [x]);
    if (state.view === "groups") {
      const groups = new Map();
      for (const rollout of found) {
        groups.set(rollout.group, [...(groups.get(rollout.group) ?? []), rollout]);
      }
      items = [...groups.values()];
    }
    selected = Math.max(items.findIndex((item) => item.some((x) => x.key === state.at)), 0);
    $("found").textContent = describe();
    $("rows").style.height = `${items.length * ROW}px`;
    select(selected, false);
  }

  function describe() {
    if (!found.length) return `None of ${rollouts.length} rollouts matches`;
    const mean = (key) => found.reduce((sum, x) => sum + (Number(x[key]) || 0), 0) / found.length;
    const groups = new Set(found.map((x) => x.group)).size;
    return `${found.length} of ${rollouts.length} rollouts match, in ${groups} groups: ` +
      `mean reward ${format(mean("reward"))}, mean length ${mean("length").toFixed(1)} tokens`;
  }

  function draw() {
    const list = $("list");
    const first = Math.max(Math.floor(list.scrollTop / ROW) - MARGIN, 0);
    const last = Math.min(Math.ceil((list.scrollTop + list.clientHeight) / ROW) + MARGIN, items.length);
    const rows = [];
    for (let i = first; i < last; i++) rows.push(row(items[i], i));
    $("rows").replaceChildren(...rows);
    if (items.length) list.setAttribute("aria-activedescendant", `row-${selected}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function row(item, i) {
    const [one] = item;
    const grouped = state.view === "groups";
    const line = grouped ? groupLine(inGroup.get(one.group), item) : rolloutLine(one);
    const snippet = (grouped ? one.prompt : one.response).slice(0, 160).replace(/[\ud800-\udbff]$/, "");
    const node = element("div", `row ${statusClass(one, grouped)}`, line,
      element("div", "snippet", ...visible(snippet, true)));
    node.id = `row-${i}`;
    node.style.top = `${i * ROW}px`;
    node.setAttribute("role", "option");
    node.setAttribute("aria-selected", String(i === selected));
    node.setAttribute("aria-setsize", String(items.length));
    node.setAttribute("aria-posinset", String(i + 1));
    return node;
  }

  function rolloutLine(x) {
    return element("div", "line", element("b", "", ...visible(x.reward_status, true)),
      element("span", "", `reward ${format(x.reward)}`), element("span", "", `A ${signed(x.advantage)}`),
      element("span", "", `${format(x.length)} tok`), element("span", "", `upd ${format(x.update)}`));
  }

  function groupLine(all, matched) {
    const dots = all.map((x) => element("i", `dot ${statusClass(x)}`));
    const mean = all.reduce((sum, x) => sum + (Number(x.reward) || 0), 0) / all.length;
    return element("div", "line", element("span", "dots", ...dots),
      element("span", "", `reward ${format(mean)}`),
      ...(matched.length < all.length ? [element("span", "", `${matched.length} of ${all.length}`)] : []),
      element("span", "", `upd ${format(all[0].update)}`));
  }

  function statusClass(rollout, plain = false) {
    return plain ? "" : STATUSES.includes(rollout.reward_status) ? rollout.reward_status : "other";
  }

  function select(i, follow = true) {
    selected = Math.min(Math.max(i, 0), Math.max(items.length - 1, 0));
    const list = $("list");
    const [top, bottom] = [selected * ROW, (selected + 1) * ROW];
    if (top < list.scrollTop) list.scrollTop = top;
    if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight;
    if (follow && items.length) state.at = items[selected][0].key;
    draw();
    detail();
    toAddress(state);
  }

  // What is selected.

  function detail() {
    token = null;
    $("tip").hidden = true;
    const whole = state.pane === "all" || state.view === "groups";
    $("one").setAttribute("aria-pressed", String(!whole));
    $("all").setAttribute("aria-pressed", String(whole));
    $("one").disabled = state.view === "groups";
    $("legend").replaceChildren(...legend(mode()));
    if (!items.length) return $("shown").replaceChildren();
    const [one] = items[selected];
    const prompt = text("Prompt", visible(one.prompt), "prompt");
    const about = facts([
      ["update", one.update], ["group", one.group_id], ["task", one.task],
      ["example", one.example_id], ["answer", one.answer],
    ]);
    const cards = whole ? inGroup.get(one.group) : [one];
    $("shown").replaceChildren(about, prompt, element("div", whole ? "cards" : "", ...cards.map(card)));
    if (!whole || state.view === "groups") return;
    $("shown").querySelectorAll(".rollout")[cards.indexOf(one)].classList.add("chosen");
  }

  function card(rollout) {
    const numbers = facts([
      ["sample", rollout.sample], ["reward", rollout.reward], ["reason", rollout.reward_status],
      ["finish", rollout.finish], ["advantage", rollout.advantage], ["log W", rollout.log_w],
      ["tokens", rollout.length], ["weight version", rollout.weight_version],
      ["staleness", rollout.staleness],
    ]);
    const node = element("article", `rollout ${statusClass(rollout)}`, numbers, response(rollout));
    if (!found.includes(rollout)) node.classList.add("beside");
    return node;
  }

  function facts(pairs) {
    return element("div", "numbers", ...pairs.map(([name, value]) =>
      element("span", "", `${name} `, element("b", "", ...visible(format(value), true)))));
  }

  function text(title, nodes, className) {
    return element("div", className, element("h3", "", title), element("pre", "", ...nodes));
  }

  function response(rollout) {
    if (!rollout.tokens) {
      return text("Response, recorded without its tokens", visible(rollout.response), "response");
    }
    const box = text("Response", rollout.tokens.map((piece, i) => {
      const last = i === rollout.tokens.length - 1 && rollout.finish === "stop";
      const kind = piece ? "" : last ? " end" : " empty";
      const node = element("span", `token${kind}`, ...visible(piece));
      node.dataset.i = i;
      paint(node, mode(), rollout, i);
      return node;
    }), "response");
    const pre = box.querySelector("pre");
    pre.dataset.key = rollout.key;
    pre.tabIndex = 0;
    pre.setAttribute("role", "group");
    pre.setAttribute("aria-label", `Response, sample ${format(rollout.sample)}: left and right arrow read its tokens`);
    return box;
  }

  function mode() {
    return everyMode[state.colour] ?? everyMode[DEFAULTS.colour];
  }

  // The numbers of a token.

  function explain(node) {
    token?.classList.remove("current");
    token = node;
    $("tip").hidden = !node;
    if (!node) return;
    node.classList.add("current");
    const rollout = rollouts.find((x) => x.key === node.closest("pre").dataset.key);
    const i = Number(node.dataset.i);
    const rows = numbersOf(rollout, i).map(([name, value]) =>
      element("tr", "", element("th", "", name), element("td", "", value)));
    const piece = rollout.tokens[i];
    $("tip").replaceChildren(
      element("div", "", `token ${i + 1} of ${rollout.tokens.length} `,
        element("b", "", ...(piece ? visible(piece, true) : ["(no text)"]))),
      element("table", "", ...rows));
    const [box, tip] = [node.getBoundingClientRect(), $("tip").getBoundingClientRect()];
    const below = box.bottom + tip.height + 8 < innerHeight;
    $("tip").style.top = `${below ? box.bottom + 6 : Math.max(box.top - tip.height - 6, 4)}px`;
    $("tip").style.left = `${Math.max(Math.min(box.left, innerWidth - tip.width - 8), 4)}px`;
  }

  function step(pre, by) {
    const tokens = pre.querySelectorAll(".token");
    const at = token && pre.contains(token) ? Number(token.dataset.i) + by : by > 0 ? 0 : tokens.length - 1;
    const next = tokens[Math.min(Math.max(at, 0), tokens.length - 1)];
    next?.scrollIntoView({ block: "nearest" });
    explain(next ?? null);
  }

  // What people do.

  function change(some) {
    Object.assign(state, some);
    fillForm();
  }

  function nextColour() {
    const names = Object.keys(everyMode);
    recolour(names[(names.indexOf(state.colour) + 1) % names.length]);
  }

  function recolour(colour) {
    change({ colour });
    detail();
    toAddress(state);
  }

  function show(pane) {
    change({ pane });
    detail();
    toAddress(state);
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") return explain(null);
    if (event.target.closest("input, select, textarea")) return;
    const page = Math.max(Math.floor($("list").clientHeight / ROW) - 1, 1);
    const moves = { j: 1, k: -1 };
    if (event.target === $("list")) {
      Object.assign(moves, {
        ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -items.length, End: items.length,
      });
    }
    const pre = event.target.closest("pre[data-key]");
    if (event.key in moves) select(selected + moves[event.key]);
    else if (pre && event.key === "ArrowRight") step(pre, 1);
    else if (pre && event.key === "ArrowLeft") step(pre, -1);
    else if (event.key === "g") show(state.pane === "all" ? "one" : "all");
    else if (event.key === "c") nextColour();
    else if (event.key === "/") form.elements.q.focus();
    else return;
    event.preventDefault();
  }

  makeForm();
  fillForm();
  document.querySelector("#rollouts .panes").hidden = false;
  form.addEventListener("input", () => { Object.assign(state, readForm()); search(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    change({ ...DEFAULTS, pane: state.pane, colour: state.colour });
    search();
  });
  $("list").addEventListener("scroll", draw, { passive: true });
  $("list").addEventListener("click", (event) => {
    const node = event.target.closest(".row");
    if (node) select(Number(node.id.slice("row-".length)));
  });
  $("one").addEventListener("click", () => show("one"));
  $("all").addEventListener("click", () => show("all"));
  $("colour").addEventListener("change", () => recolour($("colour").value));
  $("shown").addEventListener("pointerover", (event) => explain(event.target.closest(".token")));
  $("shown").addEventListener("pointerleave", () => explain(null));
  $("shown").addEventListener("focusout", () => explain(null));
  document.addEventListener("keydown", onKey);
  addEventListener("resize", draw);
  addEventListener("hashchange", () => { state = fromAddress(); fillForm(); search(); });
  const linked = state.at;
  search();
  if (linked) $("rollouts").scrollIntoView();
}

if ($("filters")) browse(JSON.parse($("rollout-data").textContent));
