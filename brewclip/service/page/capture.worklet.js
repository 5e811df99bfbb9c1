// On the audio thread: hands on what the microphone gives, as mono chunks; the last one when it is asked to stop.

const CHUNK_SAMPLES = 1024;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.chunk = new Float32Array(CHUNK_SAMPLES);
    this.filled = 0;
    this.running = true;
    this.port.onmessage = () => {
      this.running = false;
      this.port.postMessage(this.chunk.slice(0, this.filled));
      this.port.postMessage(null);
    };
  }

  process([channels]) {
    for (let at = 0; this.running && at < (channels[0]?.length ?? 0); at++) {
      let sum = 0;
      for (const channel of channels) sum += channel[at];
      this.chunk[this.filled++] = sum / channels.length;
      if (this.filled === CHUNK_SAMPLES) {
        this.port.postMessage(this.chunk);
        this.chunk = new Float32Array(CHUNK_SAMPLES);
        this.filled = 0;
      }
    }
    return this.running;
  }
}

registerProcessor("capture", Capture);
