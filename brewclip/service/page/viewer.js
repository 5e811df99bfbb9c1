// One result, large, and the way to its neighbours.

const byId = (id) => document.getElementById(id);

export class Viewer {
  /** @param {(result: object) => void} onSimilar */
  constructor(onSimilar) {
    this.dialog = byId("viewer");
    byId("viewer-close").addEventListener("click", () => this.dialog.close());
    byId("viewer-previous").addEventListener("click", () => this.#go(-1));
    byId("viewer-next").addEventListener("click", () => this.#go(1));
    byId("viewer-similar").addEventListener("click", () => {
      this.dialog.close();
      onSimilar(this.results[this.place]);
    });
    this.dialog.addEventListener("keydown", ({ key }) => {
      if (key === "ArrowLeft") this.#go(-1);
      if (key === "ArrowRight") this.#go(1);
    });
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
  }

  /** Open at a place of the results. */
  open(results, place) {
    this.results = results;
    this.#show(place);
    this.dialog.showModal();
  }

  #go(step) {
    if (this.results[this.place + step]) this.#show(this.place + step);
  }

  #show(place) {
    this.place = place;
    const result = this.results[place];
    const title = `Result ${result.rank}, similarity ${result.score.toFixed(3)}`;
    byId("viewer-title").textContent = title;
    const image = byId("viewer-image");
    image.src = result.image_url;
    image.alt = title;
    [image.width, image.height] = [result.width, result.height];
    byId("viewer-original").href = result.image_url;
    byId("viewer-previous").disabled = place === 0;
    byId("viewer-next").disabled = place === this.results.length - 1;
  }
}
