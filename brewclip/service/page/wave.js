// The live level: bars that move in from the right, and the time.

const BAR_PIXELS = 3;
const GAP_PIXELS = 3;

export class Wave {
  constructor(canvas, clock) {
    this.canvas = canvas;
    this.clock = clock;
    this.levels = [];
  }

  clear() {
    this.levels = [];
    this.show(0, 0);
  }

  show(level, seconds) {
    this.clock.textContent = `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
    this.levels.push(level);
    const { canvas } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const ratio = window.devicePixelRatio || 1;
    [canvas.width, canvas.height] = [width * ratio, height * ratio];
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.fillStyle = getComputedStyle(canvas).color;
    const count = Math.ceil(width / (BAR_PIXELS + GAP_PIXELS));
    this.levels = this.levels.slice(-count);
    this.levels.forEach((one, k) => {
      const tall = Math.max(BAR_PIXELS, one ** 2 * height); // squared: syllables stand out
      const x = width - (this.levels.length - k) * (BAR_PIXELS + GAP_PIXELS);
      context.beginPath();
      context.roundRect(x, (height - tall) / 2, BAR_PIXELS, tall, BAR_PIXELS / 2);
      context.fill();
    });
  }
}
