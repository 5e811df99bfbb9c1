// The microphone: open while somebody speaks, and never otherwise. Captures at the device's own rate, because Firefox
// connects no microphone to an AudioContext of another one.

const CONSTRAINTS = { audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true } };
const FLUSH_MILLISECONDS = 300;
const TEXTS = {
  insecure: [
    "No microphone on this address.",
    "Browsers give one only to pages on https or localhost. Type instead, or drop a recording here.",
  ],
  NotAllowedError: [
    "The microphone is blocked.",
    "Allow it for this page beside the browser's address bar, then hold the button again. Or type.",
  ],
  NotFoundError: ["No microphone was found.", "Plug one in and hold the button again. Or type, or drop a recording here."],
  other: ["The microphone does not start.", "Another program may be using it. Close that, and hold the button again."],
};

/** Why there is no recording: a title and what to do, in words for people. */
export class MicrophoneProblem extends Error {
  constructor(cause) {
    const [title, remedy] = TEXTS[cause] ?? TEXTS.other;
    super(title);
    this.remedy = remedy;
  }
}

/**
 * Open the microphone and begin to record.
 *
 * @param {(level: number) => void} onLevel called about fifty times a second with the loudness, 0 to 1
 * @returns {Promise<Recording>}
 */
export async function record(onLevel) {
  if (!window.isSecureContext || !navigator.mediaDevices) throw new MicrophoneProblem("insecure");
  const context = new AudioContext();
  const ready = context.audioWorklet.addModule("capture.worklet.js"); // meanwhile, the browser may ask for permission
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia(CONSTRAINTS);
    await ready;
    await context.resume();
    return new Recording(context, stream, onLevel);
  } catch (error) {
    ready.catch(() => {});
    stream?.getTracks().forEach((track) => track.stop());
    context.close();
    throw new MicrophoneProblem(error.name);
  }
}

class Recording {
  constructor(context, stream, onLevel) {
    this.context = context;
    this.stream = stream;
    this.chunks = [];
    this.node = new AudioWorkletNode(context, "capture", { outputChannelCount: [1] });
    this.ended = new Promise((resolve) => {
      this.node.port.onmessage = ({ data: chunk }) => {
        if (chunk === null) return resolve();
        this.chunks.push(chunk);
        onLevel(levelOf(chunk));
      };
    });
    context.createMediaStreamSource(stream).connect(this.node);
    this.node.connect(context.destination); // the node stays silent; browsers run only what leads to an output
  }

  /** Close the microphone; returns what was recorded, mono, and its rate. */
  async stop() {
    this.node.port.postMessage("stop");
    await Promise.race([this.ended, new Promise((resolve) => setTimeout(resolve, FLUSH_MILLISECONDS))]);
    this.stream.getTracks().forEach((track) => track.stop());
    const rate = this.context.sampleRate;
    this.context.close();
    return { samples: joined(this.chunks), rate };
  }
}

function joined(chunks) {
  const samples = new Float32Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  let at = 0;
  for (const chunk of chunks) {
    samples.set(chunk, at);
    at += chunk.length;
  }
  return samples;
}

/** Loudness of a chunk: -55 dB and below is 0, -10 dB is 1. */
function levelOf(chunk) {
  const power = chunk.reduce((sum, sample) => sum + sample * sample, 0) / Math.max(chunk.length, 1);
  return Math.min(1, Math.max(0, (10 * Math.log10(power + 1e-9) + 55) / 45));
}
