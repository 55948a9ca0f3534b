// The live half: asks for the state each second and shows it.

import { get, post } from "./api.js";
import { Chart, element } from "./charts.js";

const $ = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)} %`;
const count = (value) => (value >= 1e6 ? `${(value / 1e6).toFixed(1)} M` : value >= 1e4 ? `${(value / 1e3).toFixed(1)} k` : `${Math.round(value)}`);
const rate = (value) => (value < 10 && value > 0 ? value.toFixed(1) : count(value));
const span = (seconds) => (seconds < 0.001 ? `${(seconds * 1e6).toFixed(0)} µs` : seconds < 1 ? `${(seconds * 1e3).toFixed(seconds < 0.01 ? 1 : 0)} ms` : seconds < 100 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds)} s`);

const charts = [
  new Chart("Tokens per second", [{ name: "written", field: "output" }, { name: "read", field: "prompt" }], rate),
  new Chart("Requests", [{ name: "running", field: "running" }, { name: "waiting", field: "waiting" }], count),
  new Chart("KV memory", [{ name: "in use", field: "used" }, { name: "cached", field: "cached" }], percent, 1),
  new Chart("Prompts found in the cache", [{ name: "hit rate", field: "hits" }], percent, 1),
];

export function build() {
  $("charts").append(...charts.map((c) => c.node));
}

function tile(name, value) {
  return element("div", { class: "card tile" }, element("b", { text: value }), element("span", { text: name }));
}

// Nodes of a list are kept while their key stays, so that a button is not pulled from under a finger.
function keep(list, items, key, make, update, empty) {
  const known = new Map([...list.children].map((c) => [c.dataset.key, c]));
  const wanted = items.map((item) => {
    const node = known.get(key(item)) ?? Object.assign(make(item), {});
    node.dataset.key = key(item);
    update(node, item);
    return node;
  });
  if (!wanted.length) wanted.push(element("li", { class: "empty", text: empty }));
  if (wanted.length !== list.children.length || wanted.some((n, i) => n !== list.children[i])) list.replaceChildren(...wanted);
}

function runningRow(sample) {
  const button = element("button", { type: "button", class: "danger", text: "Abort", "data-abort": sample.id });
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await post("/page/abort", { id: sample.id });
    } catch (error) {
      if (error.status !== 404) button.disabled = false; // 404: it ended by itself
    }
  });
  return element("li", {}, element("code"), element("span", { class: "under" }), button, element("progress", { class: "bar", max: 1 }));
}

function showRunning(node, sample) {
  const limit = sample.limit ? ` of ${count(sample.limit)}` : "";
  node.querySelector("code").textContent = sample.tail;
  node.querySelector(".under").textContent =
    `#${sample.id} · ${count(sample.prompt_tokens)} read, ${count(sample.tokens)}${limit} written · ${span(sample.seconds)}`;
  node.querySelector("progress").value = sample.limit ? sample.tokens / sample.limit : 0;
}

function showPrefix(node, prefix) {
  const more = prefix.branches === 1 ? "1 continuation" : `${prefix.branches} continuations`;
  const parts = [`${count(prefix.tokens)} ${prefix.tokens === 1 ? "token" : "tokens"}`];
  if (prefix.before) parts.push(`after ${count(prefix.before)} others`);
  parts.push(`used ${count(prefix.uses)} ×`);
  if (prefix.readers) parts.push(`${count(prefix.readers)} reading now`);
  if (prefix.branches) parts.push(more);
  if (prefix.salted) parts.push("private to its salt");
  node.querySelector("code").textContent = prefix.head;
  node.querySelector(".under").textContent = parts.join(" · ");
}

export function show(state) {
  const { model, now, totals, latency, history } = state;
  const last = history.at(-1);
  $("model").textContent = model.name;
  document.title = `${model.name} · sglc runtime`;
  $("facts").textContent = `${model.architecture} · ${model.device} · ${model.dtype} · context ${count(model.context_length)}`;
  const kv = now.kv_cache;
  $("tiles").replaceChildren(
    tile("tokens written per second", last ? rate(last.output) : "–"),
    tile("running", count(now.num_running_reqs)),
    tile("waiting", count(now.num_waiting_reqs)),
    tile("KV memory in use", percent(kv.used_tokens / kv.total_tokens)),
    tile("found in the cache", now.prompt_tokens ? percent(now.reused_tokens / now.prompt_tokens) : "–"),
    tile("answered", count(totals.finished)),
    tile("aborted", count(totals.aborted)),
    tile("failed", count(totals.failed)),
  );
  for (const chart of charts) chart.draw(history);
  const names = { first_token: "To the first token", between_tokens: "Between tokens", whole: "Whole answer" };
  $("latency").replaceChildren(...Object.entries(names).map(([field, name]) =>
    element("tr", {}, element("td", { text: name }),
      ...["p50", "p90", "p99"].map((p) => element("td", { text: latency[field] ? span(latency[field][p]) : "–" })))));
  $("running-count").textContent = state.running_total ? `${count(state.running_total)}` : "";
  keep($("running"), state.running, (s) => s.id, runningRow, showRunning, "Nothing runs at the moment.");
  keep($("prefixes"), state.prefixes, (p) => `${p.before} ${p.tokens} ${p.head}`,
    () => element("li", {}, element("code"), element("span", { class: "under" })), showPrefix, "Nothing is cached yet.");
}

export async function fetchState() {
  return get("/page/state");
}
