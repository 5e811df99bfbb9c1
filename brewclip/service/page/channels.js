// What was heard beside what it sounded like: each channel's own answer, and the weight between them.

const byId = (id) => document.getElementById(id);
const MILLISECONDS_BEFORE_SEARCH = 250;
const REJECTIONS = {
  no_speech: "no speech was recognised",
  repetitive: "the words repeat themselves",
  low_confidence: "the words are too uncertain",
};

export class Channels {
  /**
   * @param {object} on
   * @param {(weight: number | null) => void} on.weight null: the system's own
   * @param {(result: object) => void} on.similar
   * @param {() => void} on.edit
   */
  constructor(on) {
    this.on = on;
    this.slider = byId("weight");
    this.slider.addEventListener("input", () => this.#moved());
    byId("automatic").addEventListener("click", () => {
      this.slider.focus(); // the button goes
      on.weight(null);
    });
    byId("edit").addEventListener("click", on.edit);
    byId("replay").addEventListener("click", () => this.sound?.play());
  }

  show({ query, response }) {
    const spoken = query.kind === "audio";
    byId("channels").hidden = !spoken;
    if (!spoken) return;
    this.#showRecording(query.blob);
    const { heard, sounded_like: sounded } = response.channels;
    byId("heard").hidden = !heard;
    byId("sounded").hidden = !sounded;
    byId("balance").hidden = !(heard && sounded);
    byId("transcript").textContent = response.query.transcript || "nothing";
    byId("certainty").textContent = certainty(response.query);
    this.#strip(byId("heard-images"), heard, "the words");
    this.#strip(byId("sounded-images"), sounded, "the sound");
    this.slider.max = response.weight_max;
    this.slider.value = response.weight;
    this.#label(response.weight, query.weight === null);
  }

  #showRecording(blob) {
    if (this.blob === blob) return;
    if (this.sound) URL.revokeObjectURL(this.sound.src);
    this.blob = blob;
    this.sound = new Audio(URL.createObjectURL(blob));
    byId("replay").hidden = false;
  }

  #strip(list, results, by) {
    const items = (results ?? []).map((result) => {
      const image = Object.assign(new Image(), { src: result.thumbnail_url, loading: "lazy", decoding: "async" });
      image.alt = `Number ${result.rank} by ${by}: more like this`;
      const button = Object.assign(document.createElement("button"), { type: "button" });
      button.append(image);
      button.addEventListener("click", () => this.on.similar(result));
      const item = document.createElement("li");
      item.append(button);
      return item;
    });
    list.replaceChildren(...items);
  }

  #moved() {
    const weight = Number(this.slider.value);
    this.#label(weight, false);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.on.weight(weight), MILLISECONDS_BEFORE_SEARCH);
  }

  #label(weight, chosenBySystem) {
    const shown = chosenBySystem ? `${weight.toFixed(2)}, chosen by the system` : weight.toFixed(2);
    byId("weight-shown").textContent = shown;
    this.slider.setAttribute("aria-valuetext", shown);
    byId("automatic").hidden = chosenBySystem;
  }
}

/** In which language, how certain, and why not, in one line. */
function certainty({ language, confidence, rejection, task }) {
  const name = language ? new Intl.DisplayNames(["en"], { type: "language", fallback: "code" }).of(language) : "";
  const how = task === "translate" && language !== "en" ? `${name}, translated` : name;
  const sure = rejection ? REJECTIONS[rejection] ?? rejection : `${Math.round(100 * confidence)} % certain`;
  return [how, sure].filter(Boolean).join(", ");
}
