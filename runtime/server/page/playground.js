// The playground: a chat over /v1/chat/completions, streamed.

import { events } from "./api.js";
import { element } from "./charts.js";

const $ = (id) => document.getElementById(id);
let turns = [];
let stopper = null;
let picture = null;

export function allowImages(yes) {
  $("image-label").hidden = !yes;
}

function parameters() {
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  const body = {
    temperature: number("temperature"), top_p: number("top_p"), max_tokens: number("max_tokens"), seed: number("seed"),
    stream: true, stream_options: { include_usage: true },
  };
  if ($("stop-at").value) body.stop = $("stop-at").value.replaceAll("\\n", "\n");
  if ($("logprobs").checked) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  const schema = $("schema").value.trim();
  if (schema) body.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(schema), strict: true } };
  return body;
}

function content(text) {
  if (!picture) return text;
  return [{ type: "image_url", image_url: { url: picture } }, { type: "text", text }];
}

function bubble(role, text) {
  const node = element("div", { class: `message ${role}` });
  if (role === "user" && picture) node.append(element("img", { src: picture, alt: "the image that was sent" }));
  node.append(text);
  $("messages").append(node);
  node.scrollIntoView({ block: "nearest" });
  return node;
}

// A token is a button, coloured by its probability; pressing it names the alternatives.
function token(entry) {
  const p = Math.exp(entry.logprob);
  const node = element("button", { type: "button", class: `token p${p < 0.1 ? 0 : p < 0.5 ? 1 : p < 0.9 ? 2 : 3}`, text: entry.token });
  node.title = `${(100 * p).toFixed(1)} %`;
  node.addEventListener("click", () => {
    const others = entry.top_logprobs.flatMap((t) =>
      [element("b", { text: JSON.stringify(t.token) }), ` ${(100 * Math.exp(t.logprob)).toFixed(1)} %   `]);
    $("token").replaceChildren("Likeliest here: ", ...others);
    $("token").hidden = false;
  });
  return node;
}

function add(node, choice) {
  const thought = choice.delta.reasoning_content;
  if (thought) {
    const last = node.lastChild;
    if (last?.className === "thought") last.append(thought);
    else node.append(element("span", { class: "thought", text: thought }));
  }
  let entries = choice.logprobs?.content ?? [];
  if (choice.finish_reason) { // the last event also has the token that ended the answer, which is no text
    let left = (choice.delta.content ?? "").length;
    entries = entries.filter((e) => (left -= e.token.length) > -e.token.length);
  }
  if (entries.length) node.append(...entries.map(token));
  else if (choice.delta.content) node.append(choice.delta.content);
}

async function answer(body) {
  const node = bubble("assistant", "");
  node.classList.add("open");
  stopper = new AbortController();
  $("stop").hidden = false;
  $("send").disabled = true;
  const began = performance.now();
  let text = "", reason = "", usage = null, first = null;
  try {
    for await (const event of events("/v1/chat/completions", body, stopper.signal)) {
      const choice = event.choices[0];
      if (choice) {
        if (choice.delta.content) first ??= performance.now() - began;
        text += choice.delta.content ?? "";
        add(node, choice);
        reason = choice.finish_reason ?? reason;
        $("messages").scrollTop = $("messages").scrollHeight;
      }
      usage = event.usage ?? usage;
    }
  } catch (error) {
    if (error.name === "AbortError") reason = "you";
    else {
      node.classList.add("failed");
      node.append(error.message);
      reason = "failed";
    }
  }
  node.classList.remove("open");
  $("stop").hidden = true;
  $("send").disabled = false;
  stopper = null;
  const seconds = (performance.now() - began) / 1000;
  const parts = [`ended by ${reason || "the server"}`];
  if (usage) {
    const reused = usage.prompt_tokens_details?.cached_tokens ?? 0;
    parts.push(`${usage.prompt_tokens} read (${reused} from the cache)`, `${usage.completion_tokens} written`,
      `${(usage.completion_tokens / seconds).toFixed(0)} tokens/s`);
  }
  if (first !== null) parts.push(`first after ${first.toFixed(0)} ms`);
  $("usage").textContent = parts.join(" · ");
  return reason === "failed" ? null : text;
}

async function send() {
  const text = $("text").value;
  if (!text.trim() || stopper) return;
  let body;
  try {
    body = parameters();
  } catch (error) {
    $("usage").textContent = `The JSON schema cannot be read: ${error.message}`;
    return;
  }
  const turn = { role: "user", content: content(text) };
  bubble("user", text);
  $("text").value = "";
  takePicture(null);
  $("token").hidden = true;
  const system = $("system").value.trim() ? [{ role: "system", content: $("system").value }] : [];
  const reply = await answer({ ...body, messages: [...system, ...turns, turn] });
  if (reply !== null) turns.push(turn, { role: "assistant", content: reply });
}

function takePicture(file) {
  picture = null;
  $("image-name").textContent = "";
  $("image").value = "";
  if (!file) return;
  const reader = new FileReader();
  reader.onload = () => {
    picture = reader.result;
    $("image-name").textContent = file.name;
  };
  reader.readAsDataURL(file);
}

export function build() {
  $("say").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  $("stop").addEventListener("click", () => stopper?.abort());
  $("clear").addEventListener("click", () => {
    stopper?.abort();
    turns = [];
    $("messages").replaceChildren();
    $("usage").textContent = "";
    $("token").hidden = true;
  });
  $("image").addEventListener("change", () => takePicture($("image").files[0]));
}
