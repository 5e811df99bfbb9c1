// The grid of results, page by page.

const SHOWN_AT_ONCE = 24;
const byId = (id) => document.getElementById(id);

export { SHOWN_AT_ONCE };

export class Results {
  /**
   * @param {object} on
   * @param {(place: number) => void} on.look
   * @param {(result: object) => void} on.similar
   * @param {() => Promise<boolean>} on.more adds the next page to the entry that is shown; false if that failed
   */
  constructor(on) {
    this.on = on;
    this.grid = byId("grid");
    this.template = byId("tile");
    this.button = byId("more");
    this.button.addEventListener("click", () => this.#more(true));
    this.watcher = new IntersectionObserver(([entry]) => entry.isIntersecting && this.#more(), { rootMargin: "600px" });
  }

  /** Show the results of an entry, those of its loaded pages. */
  show(entry) {
    const { response, results } = entry;
    this.entry = entry;
    this.loading = null;
    this.grid.replaceChildren();
    this.#append(results, 0);
    this.grid.classList.toggle("far", response.nothing_close);
    byId("nothing-close").hidden = !response.nothing_close;
    byId("results-title").textContent = titleOf(entry);
    byId("results-facts").textContent = factsOf(response);
    this.#offerMore(entry);
  }

  #append(results, from) {
    results.forEach((result, k) => this.grid.append(this.#tile(result, from + k)));
  }

  #tile(result, place) {
    const tile = this.template.content.cloneNode(true);
    const score = result.score.toFixed(3);
    const image = tile.querySelector("img");
    image.src = result.thumbnail_url;
    image.alt = `Result ${result.rank}, similarity ${score}`;
    tile.querySelector(".score").textContent = score;
    tile.querySelector(".score").title = "Cosine similarity";
    tile.querySelector(".bar span").style.width = `${100 * Math.max(0, Math.min(1, result.score))}%`;
    tile.querySelector(".look").addEventListener("click", () => this.on.look(place));
    const similar = tile.querySelector(".similar");
    similar.setAttribute("aria-label", `More like this: result ${result.rank}`);
    similar.addEventListener("click", () => this.on.similar(result));
    return tile;
  }

  /** Load the next page; who asked by the button goes on at its first image. */
  async #more(byButton = false) {
    if (this.loading === this.entry || this.button.hidden) return;
    const entry = (this.loading = this.entry);
    const grown = await this.on.more();
    if (entry !== this.entry) return;
    this.loading = null;
    if (!grown) return this.watcher.unobserve(this.button); // the button tries again
    const from = this.grid.children.length;
    this.#append(entry.results.slice(from), from);
    this.#offerMore(entry);
    if (byButton) this.grid.children[from]?.querySelector(".look").focus();
  }

  #offerMore({ response, results, complete }) {
    const left = response.total - results.length;
    this.button.hidden = complete || left <= 0;
    this.button.textContent = `Show more of ${response.total.toLocaleString("en")}`;
    this.watcher.unobserve(this.button);
    if (!this.button.hidden) this.watcher.observe(this.button); // anew, as it may be in view still
  }
}

function titleOf({ query, response }) {
  const { transcript } = response.query;
  if (query.kind === "audio") return transcript ? `\u201c${transcript}\u201d` : "What it sounded like";
  if (query.kind === "image") return "Like the image that you gave";
  if (query.kind === "like") return query.text ? `Like this image, and \u201c${query.text}\u201d` : "More like this";
  return `\u201c${query.text}\u201d`;
}

function factsOf({ total, timing_seconds: timing }) {
  const listening = timing.whisper ? ` (${timing.whisper.toFixed(2)} s of listening)` : "";
  return `${total.toLocaleString("en")} images, nearest first, in ${timing.total.toFixed(2)} s${listening}`;
}
