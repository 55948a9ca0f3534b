// Tabs, the key, and the beat of the live half.

import { keyGiven, useKey } from "./api.js";
import * as live from "./live.js";
import * as playground from "./playground.js";

const $ = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((go) => setTimeout(go, ms));

function open(name) {
  for (const tab of ["live", "play"]) {
    $(tab).hidden = tab !== name;
    $(`tab-${tab}`).setAttribute("aria-selected", String(tab === name));
  }
  if (location.hash.slice(1) !== name) history.replaceState(null, "", `#${name}`);
}

function connected(state, label) {
  $("dot").className = `dot ${state}`;
  $("dot").setAttribute("aria-label", label);
}

async function beat() {
  for (let tried = false; ; ) {
    try {
      const state = await live.fetchState();
      tried = false;
      $("ask-key").hidden = true;
      $("trouble").hidden = true;
      connected("up", "connected");
      playground.allowImages(state.model.images);
      $("tab-play").hidden = !state.model.generates;
      if (!state.model.generates && !$("play").hidden) open("live");
      live.show(state);
    } catch (error) {
      connected("down", "not connected");
      if (error.status === 401 || error.status === 403) {
        $("ask-key").hidden = false;
        $("key-wrong").hidden = !tried;
        await keyGiven();
        tried = true;
        continue;
      }
      $("trouble").textContent = error.status ? error.message : "The server does not answer; trying again.";
      $("trouble").hidden = false;
    }
    await sleep(1000);
    while (document.hidden) await sleep(500);
  }
}

live.build();
playground.build();
for (const tab of ["live", "play"]) $(`tab-${tab}`).addEventListener("click", () => open(tab));
$("ask-key").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("key").value);
});
open(location.hash === "#play" ? "play" : "live");
beat();
