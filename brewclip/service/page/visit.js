// What was searched in this visit, kept in memory only; and the query in the address, to share and to go back to.

const MOST_ENTRIES = 30;
const byId = (id) => document.getElementById(id);

export class Visit {
  /** @param {(entry: object) => void} onChosen */
  constructor(onChosen) {
    this.entries = [];
    this.onChosen = onChosen;
  }

  /** Add an entry, the newest, and put it into the address. */
  add(entry, replace = false) {
    entry.key = performance.timeOrigin + performance.now(); // no other load of the page has it
    this.entries = [entry, ...this.entries].slice(0, MOST_ENTRIES);
    history[replace ? "replaceState" : "pushState"]({ entry: entry.key }, "", addressOf(entry));
  }

  /** Return the entry of a state of the browser's history; none after the page was loaded again. */
  find(state) {
    return this.entries.find(({ key }) => key === state?.entry);
  }

  /** Mark an entry as the one that is shown. */
  select(entry) {
    byId("visit").hidden = false;
    byId("visit-list").replaceChildren(...this.entries.map((one) => this.#item(one, one === entry)));
  }

  #item(entry, current) {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    if (current) button.setAttribute("aria-current", "true");
    const [first] = entry.results;
    if (first) button.append(Object.assign(new Image(), { src: first.thumbnail_url, alt: "" }));
    button.append(Object.assign(document.createElement("span"), { textContent: labelOf(entry) }));
    button.dataset.kind = entry.query.kind;
    button.addEventListener("click", () => {
      history.pushState({ entry: entry.key }, "", addressOf(entry));
      this.onChosen(entry);
    });
    const item = document.createElement("li");
    item.append(button);
    return item;
  }
}

/** A few words on what was searched. */
export function labelOf({ query, response }) {
  if (query.kind === "audio") return response.query.transcript || "A recording";
  if (query.kind === "image") return "An image of yours";
  return query.text || "More like this";
}

// The query is in the fragment, which browsers do not send: no log of a server or proxy gets to see it.
function addressOf({ query, response }) {
  const parts = new URLSearchParams();
  const text = query.kind === "audio" ? response.query.transcript : query.text;
  if (text) parts.set("q", text);
  if (query.like) parts.set("like", query.like);
  return `${location.pathname}${parts.size ? `#${parts}` : ""}`;
}

/** Return the query of the address, or null. */
export function queryOfAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const [text, like] = [parts.get("q") ?? "", parts.get("like") ?? ""];
  if (like) return { kind: "like", like, text };
  return text ? { kind: "text", text } : null;
}
