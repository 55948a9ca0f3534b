// Requests to this server. The key lives in the tab's session storage and nowhere else.

const PLACE = "sglc-key";
const waiting = [];

function headers(more) {
  const key = sessionStorage.getItem(PLACE);
  return key ? { ...more, Authorization: `Bearer ${key}` } : { ...more };
}

export function useKey(key) {
  sessionStorage.setItem(PLACE, key);
  for (const go of waiting.splice(0)) go();
}

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function refusal(answer) {
  let message = `${answer.status} ${answer.statusText}`;
  try {
    message = (await answer.json()).error.message;
  } catch { /* not one of our bodies: the status has to do */ }
  return new Refused(message, answer.status);
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers(options.headers) });
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

export async function get(path) {
  return (await ask(path)).json();
}

export async function post(path, body) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  return (await ask(path, options)).json();
}

// Resolves when somebody has given a key.
export function keyGiven() {
  return new Promise((go) => waiting.push(go));
}

// The JSON objects of an event stream, one after the other, until [DONE].
export async function* events(path, body, signal) {
  const options = { method: "POST", signal, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const reader = (await ask(path, options)).body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    let end;
    while ((end = held.indexOf("\n\n")) >= 0) {
      const event = held.slice(0, end);
      held = held.slice(end + 2);
      const data = event.split("\n").filter((l) => l.startsWith("data: ")).map((l) => l.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const object = JSON.parse(data);
      if (object.error) throw new Refused(object.error.message, 500);
      yield object;
    }
  }
}
