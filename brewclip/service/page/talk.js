// Hold to talk: by pointer, by the space bar, or switched on and off by a tap, Enter or a screen reader.

import { MicrophoneProblem, record } from "./microphone.js";

const TAP_MILLISECONDS = 350; // a shorter press is a tap, which leaves the microphone open until the next one
const SHORTEST_SECONDS = 0.3;
const USES_SPACE = "input, textarea, select, button, summary, dialog, [contenteditable]";

export class Talk {
  /**
   * @param {HTMLButtonElement} button
   * @param {object} on
   * @param {() => void} on.start the microphone is open
   * @param {(level: number, seconds: number) => void} on.level
   * @param {(sound: {samples: Float32Array, rate: number} | null, hint: string) => void} on.end null: of no use
   * @param {(problem: MicrophoneProblem) => void} on.problem
   */
  constructor(button, on) {
    this.button = button;
    this.on = on;
    this.longest = 60;
    this.state = "idle"; // idle, opening, open, closing
    this.held = this.latched = false;
    this.#listen();
  }

  #listen() {
    const button = this.button;
    button.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      button.setPointerCapture(event.pointerId);
      this.#press();
    });
    for (const kind of ["pointerup", "pointercancel"]) button.addEventListener(kind, () => this.#release());
    button.addEventListener("contextmenu", (event) => event.preventDefault()); // of a long touch
    button.addEventListener("click", (event) => event.detail === 0 && this.#toggle()); // neither pointer nor key
    addEventListener("keydown", (event) => this.#keyDown(event));
    addEventListener("keyup", (event) => this.#keyUp(event));
    addEventListener("blur", () => this.#release(false)); // the browser's question for permission takes the focus
  }

  #keyDown(event) {
    if (event.key === "Escape" && this.state !== "idle") return this.#finish(true);
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const onButton = event.target === this.button;
    if (event.key === "Enter" && onButton) {
      event.preventDefault(); // its click
      if (!event.repeat) this.#toggle();
    } else if (event.key === " " && (onButton || !event.target.closest?.(USES_SPACE))) {
      event.preventDefault(); // scrolling
      if (!event.repeat) this.#press();
    }
  }

  #keyUp(event) {
    if (event.key !== " " || !this.held) return;
    event.preventDefault(); // the button's click
    this.#release();
  }

  #press() {
    this.held = true;
    this.pressedAt = performance.now();
    if (this.state === "idle") this.#begin();
    else if (this.latched) this.#finish();
  }

  #release(mayBeTap = true) {
    if (!this.held) return;
    this.held = false;
    if (this.latched || this.state === "idle") return;
    if (mayBeTap && performance.now() - this.pressedAt < TAP_MILLISECONDS) this.latched = true;
    else if (this.state === "open") this.#finish();
  }

  #toggle() {
    if (this.state === "idle") {
      this.latched = true;
      this.#begin();
    } else this.#finish();
  }

  async #begin() {
    this.state = "opening";
    this.#show(true);
    try {
      this.recording = await record((level) => this.#level(level));
    } catch (problem) {
      this.#reset();
      if (!(problem instanceof MicrophoneProblem)) throw problem;
      return this.on.problem(problem);
    }
    if (!this.held && !this.latched) return this.#discard(); // the browser asked for permission, and it was let go
    this.state = "open";
    this.startedAt = performance.now();
    this.on.start();
  }

  async #discard() {
    await this.recording.stop();
    this.#reset();
    this.on.end(null, "The microphone is ready. Hold the button and speak.");
  }

  #level(level) {
    if (this.state !== "open") return;
    const seconds = (performance.now() - this.startedAt) / 1000;
    this.on.level(level, seconds);
    if (seconds >= this.longest) this.#finish();
  }

  async #finish(cancel = false) {
    if (this.state === "opening") {
      this.held = this.latched = false; // #begin discards it
      return;
    }
    if (this.state !== "open") return;
    this.state = "closing";
    const sound = await this.recording.stop();
    this.#reset();
    if (cancel) return this.on.end(null, "");
    const seconds = sound.samples.length / sound.rate;
    if (seconds < SHORTEST_SECONDS) return this.on.end(null, "That was too short. Hold the button while you speak.");
    this.on.end(sound, "");
  }

  #reset() {
    this.state = "idle";
    this.latched = false;
    this.#show(false);
  }

  #show(active) {
    this.button.setAttribute("aria-pressed", active);
  }
}
