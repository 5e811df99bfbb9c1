// The page: one search after another, by voice, words, or images; each part has a module of its own.

import * as api from "./api.js";
import { Channels } from "./channels.js";
import { watchFiles } from "./files.js";
import { Results, SHOWN_AT_ONCE } from "./results.js";
import { wavOf } from "./sound.js";
import { Talk } from "./talk.js";
import { Viewer } from "./viewer.js";
import { Visit, labelOf, queryOfAddress } from "./visit.js";
import { Wave } from "./wave.js";

const byId = (id) => document.getElementById(id);
const text = byId("text");
let current = null; // the entry that is shown: {query, response of the first page, results of all loaded pages}
let like = ""; // id of the image that words are added to
let running = new AbortController();
let limits = {};

const viewer = new Viewer(similar);
const results = new Results({ look: (place) => viewer.open(current.results, place), similar, more });
const channels = new Channels({ weight: reweigh, similar, edit });
const visit = new Visit((entry) => show(entry, true));
const wave = new Wave(byId("wave"), byId("seconds"));

// ---------------------------------------------------------------- searching

/** Search, and show what is found; a search that runs still is given up. */
async function search(query, { focus = false, replace = false } = {}) {
  const response = await ask(query);
  if (!response) return;
  const entry = { query, response, results: response.results };
  visit.add(entry, replace);
  show(entry, focus);
}

/** Return the first page of results, or null if there is none for some reason, which is shown. */
async function ask(query) {
  const signal = giveUpRunning();
  complain("");
  announce(query.kind === "audio" ? "Listening to the recording" : "Searching");
  document.body.classList.add("busy");
  try {
    const tooLarge = query.blob && query.blob.size > limits.body_bytes;
    if (tooLarge) throw new api.Problem(`The file is too large: ${limits.body_bytes / 1e6} MB are accepted.`);
    const onWait = () => announce("The service is busy, this will be tried again");
    return await api.search(query, { top: SHOWN_AT_ONCE, signal, onWait });
  } catch (error) {
    if (signal.aborted) return null;
    announce("");
    complain(error.message);
    return null;
  } finally {
    if (!signal.aborted) document.body.classList.remove("busy");
  }
}

/** Abort what is requested at present; returns the signal of what comes next. */
function giveUpRunning() {
  running.abort();
  running = new AbortController();
  return running.signal;
}

function show(entry, focus) {
  current = entry;
  document.body.dataset.view = "results";
  complain("");
  showQuery(entry);
  results.show(entry);
  channels.show(entry);
  visit.select(entry);
  const [first] = entry.results;
  const found = `${entry.results.length} of ${entry.response.total} images for: ${labelOf(entry)}`;
  announce(entry.response.nothing_close ? `Nothing close for: ${labelOf(entry)}` : first ? found : "No images");
  if (focus) {
    scrollTo({ top: 0 });
    byId("results-title").focus({ preventScroll: true });
  }
}

/** Put words and image of an entry into the fields, to be changed. */
function showQuery({ query, response }) {
  const typed = document.activeElement === text && (query.kind === "text" || query.kind === "like");
  if (!typed) text.value = query.kind === "audio" ? response.query.transcript : (query.text ?? "");
  like = query.like ?? "";
  byId("like").hidden = !like;
  text.placeholder = like ? "and add words" : "or type it";
  if (like) byId("like-image").src = `v1/images/${like}/thumbnail`;
}

function similar(result) {
  search({ kind: "like", like: result.id, text: "" }, { focus: true });
}

/** Add the next page of results to the entry that is shown; false if that failed. */
async function more() {
  const entry = current;
  try {
    const offset = entry.results.length;
    const page = await api.search(entry.query, { top: SHOWN_AT_ONCE, offset, signal: running.signal });
    const same = page.index.version === entry.response.index.version; // else images would be missing or come twice
    if (same) entry.results = [...entry.results, ...page.results];
    entry.complete = !same || !page.results.length || entry.results.length > limits.offset;
  } catch (error) {
    if (error.name !== "AbortError") complain(error.message);
    return false;
  }
  if (entry === current) announce(`${entry.results.length} of ${entry.response.total} images are shown`);
  return true;
}

/** Search again with another weight of the sound; the entry stays the same. */
async function reweigh(weight) {
  const entry = current;
  const query = { ...entry.query, weight };
  const response = await ask(query);
  if (!response || entry !== current) return;
  Object.assign(entry, { query, response, results: response.results, complete: false });
  show(entry, false);
}

// ---------------------------------------------------------------- words

byId("words").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = text.value.trim();
  if (like) search({ kind: "like", like, text: words });
  else if (words) search({ kind: "text", text: words });
  else text.focus();
});
byId("unlike").addEventListener("click", () => {
  like = "";
  byId("like").hidden = true;
  text.placeholder = "or type it";
  text.focus();
});

function edit() {
  text.focus();
  text.select();
}

// ---------------------------------------------------------------- voice

const talk = new Talk(byId("talk"), {
  start() {
    giveUpRunning();
    document.body.classList.remove("busy");
    document.body.classList.add("recording");
    complain("");
    byId("listening").hidden = false;
    wave.clear();
    announce("Recording");
  },
  level(level, seconds) {
    byId("talk").style.setProperty("--level", level.toFixed(3));
    wave.show(level, seconds);
  },
  end(sound, hint) {
    stopListening();
    if (sound) search({ kind: "audio", blob: wavOf(sound.samples, sound.rate), weight: null });
    else announce(hint, true);
  },
  problem(problem) {
    stopListening();
    complain(problem.message, problem.remedy);
  },
});

function stopListening() {
  document.body.classList.remove("recording");
  byId("listening").hidden = true;
  byId("talk").style.setProperty("--level", 0);
}

// ---------------------------------------------------------------- messages

/** Tell screen readers what happens; `seen` shows it to everybody. */
function announce(message, seen = false) {
  byId("status").textContent = message;
  byId("status").classList.toggle("hidden", !seen || !message);
}

/** Show what went wrong, and what helps; an empty title takes it away. */
function complain(title, remedy = "") {
  const parts = [Object.assign(document.createElement("strong"), { textContent: title }), ` ${remedy}`];
  byId("problem").replaceChildren(...(title ? parts : []));
  byId("problem").hidden = !title;
}

// ---------------------------------------------------------------- start

async function showExamples() {
  const found = await api.examples();
  const items = found.map(({ title, url }) => {
    const button = byId("example").content.cloneNode(true).firstElementChild;
    button.querySelector("span").textContent = title;
    button.addEventListener("click", async () => {
      try {
        search({ kind: "audio", blob: await api.recording(url), weight: null });
      } catch (error) {
        complain(error.message);
      }
    });
    const item = document.createElement("li");
    item.append(button);
    return item;
  });
  byId("examples-list").replaceChildren(...items);
  byId("examples").hidden = !found.length;
}

async function showInfo() {
  const { index, model, limits: stated } = await api.info();
  limits = stated;
  talk.longest = limits.speech_seconds;
  text.maxLength = limits.text_characters;
  byId("images").textContent = `${index.images.toLocaleString("en")} images`;
  byId("model").textContent = `, ${model.checkpoint}`;
}

function follow(state) {
  const entry = visit.find(state);
  const query = queryOfAddress();
  if (entry) show(entry, false);
  else if (query) search(query, { replace: true });
  else document.body.dataset.view = "start";
}

watchFiles({ input: byId("file"), overlay: byId("drop") }, search, complain);
addEventListener("popstate", ({ state }) => follow(state));
showInfo().catch((error) => complain(error.message));
showExamples().catch(() => {}); // the page does without
follow(null);
