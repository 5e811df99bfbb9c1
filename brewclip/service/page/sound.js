// Sound as the service takes it: mono, 16 kHz, 16-bit WAV.

export const RATE = 16000;
const HALF_WIDTH = 24; // zero crossings of the sinc on each side
const CUTOFF = 0.93; // of the lower Nyquist frequency: the filter falls off between here and there
const KAISER_BETA = 8.5; // -85 dB beyond
// What the service reads by itself; other containers are decoded here.
const READ_BY_SERVICE = /^audio\/(x-)?(wav|wave|vnd\.wave|flac|ogg|mpeg|mp3)$/;

/**
 * Resample by a windowed sinc, whose taps are computed once for each phase. An AudioBufferSourceNode would do it by
 * linear interpolation in Chromium, which folds what is above 8 kHz into the speech.
 *
 * @param {Float32Array} samples mono
 * @param {number} from their rate in Hz
 * @param {number} to the rate in Hz that is wanted
 */
export function resample(samples, from, to = RATE) {
  if (from === to) return samples;
  const divisor = greatestCommonDivisor(from, to);
  const [up, down] = [to / divisor, from / divisor];
  const scale = Math.min(1, to / from) * CUTOFF;
  const reach = Math.ceil(HALF_WIDTH / scale);
  const taps = Array.from({ length: up }, (_, phase) => tapsOf(phase / up, reach, scale));
  const output = new Float32Array(Math.floor((samples.length * to) / from));
  for (let n = 0; n < output.length; n++) {
    const phase = (n * down) % up;
    const first = (n * down - phase) / up - reach + 1;
    let sum = 0;
    for (let k = Math.max(0, -first); k < 2 * reach && first + k < samples.length; k++) {
      sum += taps[phase][k] * samples[first + k];
    }
    output[n] = sum;
  }
  return output;
}

/** Taps for an output that lies `fraction` of a sample behind an input sample; they sum to 1. */
function tapsOf(fraction, reach, scale) {
  const taps = new Float64Array(2 * reach);
  for (let k = 0; k < taps.length; k++) {
    const distance = k - reach + 1 - fraction;
    const x = Math.PI * distance * scale;
    taps[k] = (x === 0 ? 1 : Math.sin(x) / x) * kaiser(distance / reach);
  }
  const sum = taps.reduce((a, b) => a + b);
  return taps.map((tap) => tap / sum);
}

function kaiser(place) {
  return Math.abs(place) >= 1 ? 0 : bessel(KAISER_BETA * Math.sqrt(1 - place * place)) / bessel(KAISER_BETA);
}

/** Modified Bessel function of the first kind and order zero, by its series. */
function bessel(x) {
  let sum = 1;
  for (let term = 1, k = 1; term > 1e-12 * sum; k++) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}

function greatestCommonDivisor(a, b) {
  return b ? greatestCommonDivisor(b, a % b) : a;
}

/** Return samples at any rate as a WAV file. */
export function wavOf(samples, rate) {
  const sound = resample(samples, rate);
  const view = new DataView(new ArrayBuffer(44 + 2 * sound.length));
  const write = (at, text) => [...text].forEach((letter, k) => view.setUint8(at + k, letter.charCodeAt(0)));
  write(0, "RIFF");
  view.setUint32(4, 36 + 2 * sound.length, true);
  write(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // size of the format that follows: PCM, mono
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true);
  view.setUint32(28, 2 * RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  write(36, "data");
  view.setUint32(40, 2 * sound.length, true);
  sound.forEach((sample, k) => view.setInt16(44 + 2 * k, Math.max(-1, Math.min(1, sample)) * 0x7fff, true));
  return new Blob([view], { type: "audio/wav" });
}

/** Return a file of sound as the service reads it; throws if the browser cannot decode it. */
export async function readable(file) {
  if (READ_BY_SERVICE.test(file.type)) return file;
  const context = new OfflineAudioContext(1, 1, 48000);
  const buffer = await context.decodeAudioData(await file.arrayBuffer());
  const mixed = new Float32Array(buffer.length);
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    const samples = buffer.getChannelData(channel);
    for (let at = 0; at < mixed.length; at++) mixed[at] += samples[at] / buffer.numberOfChannels;
  }
  return wavOf(mixed, buffer.sampleRate);
}
