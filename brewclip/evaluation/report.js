"use strict";
// The list of queries, filtered, sorted and shown in pages. The state is stored in the URL fragment, so that a view can
// be linked: #system=NAME&show=wrong&at=5&other=right:NAME&wer=3&text=WORD&sound=1&sort=worst&page=2
const PAGE_QUERIES = 20;
const data = JSON.parse(document.getElementById("data").textContent);
const controls = ["system", "show", "at", "other", "wer", "sort", "text", "sound"];
const defaults = { system: data.systems[0], show: "all", at: "1", other: "any", wer: "any", sort: "stored", text: "", sound: "" };
const element = name => document.getElementById(name);
const sounds = [];  // object URLs of the recordings on the current page
let state = { ...defaults, page: 1 };

function make(tag, parent, attributes = {}, text = "") {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text) made.textContent = text;
  parent.appendChild(made);
  return made;
}

function addImage(parent, place, right) {
  const stored = element("image-" + place), name = data.images[place];
  if (!stored) { make("div", parent, { class: right ? "gone right" : "gone", title: name + " cannot be shown" }); return; }
  const source = "data:image/jpeg;base64," + stored.textContent;
  make("img", parent, { "data-id": name, src: source, alt: name, title: name, ...(right ? { class: "right" } : {}) });
}

function addSound(parent, number) {
  const stored = element("sound-" + number);
  if (!stored) return;
  const bytes = Uint8Array.from(atob(stored.textContent), letter => letter.charCodeAt(0));
  const url = URL.createObjectURL(new Blob([bytes], { type: "audio/flac" }));
  sounds.push(url);
  make("audio", parent, { controls: "", preload: "metadata", src: url });
}

function addQuery(parent, number) {
  const query = data.queries[number];
  const section = make("section", parent, { class: "query", id: "query-" + number });
  const own = make("div", section, { class: "own" });
  addImage(own, query.image, false);
  addSound(own, number);
  make("p", own, {}, query.key + (query.wer === null ? "" : ", word errors " + Math.round(100 * query.wer) + " %"));
  const answers = make("div", section);
  for (const [label, text] of [["said", query.said], ["heard", query.heard]]) {
    if (text === null) continue;
    const line = make("p", answers, { class: "said" });
    make("span", line, {}, label);
    make("bdi", line, {}, text || "(nothing)");
  }
  data.systems.forEach((name, place) => {
    const row = make("div", answers, { class: "answer" }), rank = query.ranks[place];
    const label = make("div", row, {}, name);
    make("br", label);
    const hit = rank !== null && rank <= 5;
    make("span", label, { class: hit ? "rank hit" : "rank" }, rank === null ? "left out" : "rank " + rank.toLocaleString("en"));
    const top = make("div", row, { class: "top" });
    for (const image of query.top[place]) addImage(top, image, image === query.image);
  });
}

const isRight = (query, place) => query.ranks[place] !== null && query.ranks[place] <= Number(state.at);

function fits(query, place, number) {
  if (state.show !== "all" && isRight(query, place) !== (state.show === "right")) return false;
  const [kind, ...name] = state.other.split(":");
  if (kind !== "any" && isRight(query, data.systems.indexOf(name.join(":"))) !== (kind === "right")) return false;
  if (state.wer !== "any") {
    const band = Number(state.wer), low = band ? data.bands[band - 1] : -1;
    const high = band < data.bands.length ? data.bands[band] : Infinity;
    if (query.wer === null || query.wer <= low || query.wer > high) return false;
  }
  if (state.sound && !element("sound-" + number)) return false;
  const word = state.text.toLowerCase();
  return !word || [query.said, query.heard, query.key].some(text => (text || "").toLowerCase().includes(word));
}

function matchingQueries() {
  const place = Math.max(0, data.systems.indexOf(state.system));
  const numbers = Array.from(data.queries, (_, number) => number);
  const matching = numbers.filter(number => fits(data.queries[number], place, number));
  const rank = number => data.queries[number].ranks[place] ?? Infinity, margin = number => data.queries[number].margins[place] ?? -Infinity;
  if (state.sort === "best") matching.sort((a, b) => rank(a) - rank(b) || margin(b) - margin(a) || a - b);
  if (state.sort === "worst") matching.sort((a, b) => rank(b) - rank(a) || margin(a) - margin(b) || a - b);
  if (state.sort === "errors") matching.sort((a, b) => (data.queries[b].wer ?? -1) - (data.queries[a].wer ?? -1) || a - b);
  return matching;
}

function show() {
  const matching = matchingQueries(), pages = Math.max(1, Math.ceil(matching.length / PAGE_QUERIES));
  state.page = Math.min(Math.max(1, state.page), pages);
  for (const url of sounds.splice(0)) URL.revokeObjectURL(url);
  const list = element("queries"), first = (state.page - 1) * PAGE_QUERIES;
  list.textContent = "";
  for (const number of matching.slice(first, first + PAGE_QUERIES)) addQuery(list, number);
  element("count").textContent = matching.length.toLocaleString("en") + " of " + data.queries.length.toLocaleString("en") + " shown";
  for (const pager of document.querySelectorAll(".pager")) {
    pager.querySelector(".place").textContent = "page " + state.page + " of " + pages;
    pager.querySelector(".back").disabled = state.page === 1;
    pager.querySelector(".on").disabled = state.page === pages;
  }
}

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  state = { ...defaults, page: Number.parseInt(given.get("page"), 10) || 1 };
  for (const name of controls) {
    const control = element(name), value = given.get(name) ?? defaults[name];
    if (control.type === "checkbox") control.checked = Boolean(value); else control.value = value;
    // Ignore a value that the control does not offer.
    if (control.tagName === "SELECT" && control.value !== value) control.value = defaults[name];
    state[name] = control.type === "checkbox" ? (control.checked ? "1" : "") : control.value;
  }
  show();
}

function writeAddress() {
  const changed = Object.entries(state).filter(([name, value]) => String(value) !== String(name === "page" ? 1 : defaults[name]));
  history.replaceState(null, "", "#" + new URLSearchParams(changed));
}

for (const name of controls) {
  element(name).addEventListener("input", event => {
    state[name] = event.target.type === "checkbox" ? (event.target.checked ? "1" : "") : event.target.value;
    state.page = 1;
    show();
    writeAddress();
  });
}
for (const pager of document.querySelectorAll(".pager")) {
  pager.addEventListener("click", event => {
    if (event.target.tagName !== "BUTTON") return;
    state.page += event.target.className === "on" ? 1 : -1;
    show();
    writeAddress();
    element("list").scrollIntoView();
  });
}
addEventListener("hashchange", readAddress);
readAddress();
