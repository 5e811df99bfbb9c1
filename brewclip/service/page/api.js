// Requests to the service. A query is one of
//   {kind: "audio", blob, weight}    weight: of the sound, or null for the system's own
//   {kind: "image", blob}
//   {kind: "text", text}
//   {kind: "like", like, text}       like: id of an indexed image; text may be empty

const TRIES = 4;
const LONGEST_WAIT_SECONDS = 10;

/** What went wrong with a request, in words for people. */
export class Problem extends Error {}

/** Return one page of results. */
export function search(query, { top, offset = 0, signal, onWait }) {
  const parameters = new URLSearchParams({ top, offset });
  if (query.kind === "audio" || query.kind === "image") {
    if (query.weight != null) parameters.set("weight", query.weight);
    const headers = { "Content-Type": query.blob.type };
    return request(`v1/search?${parameters}`, { method: "POST", headers, body: query.blob, signal }, onWait);
  }
  const words = { text: query.text ?? "", like: query.like ?? "", top, offset };
  const headers = { "Content-Type": "application/json" };
  return request("v1/search", { method: "POST", headers, body: JSON.stringify(words), signal }, onWait);
}

/** Return what is served, and its limits. */
export const info = () => request("v1/info");

/** Return the recordings that can be searched with in place of one's own voice. */
export const examples = async () => (await request("v1/examples")).examples;

/** Return a recording as a blob. */
export async function recording(url) {
  const response = await send(url);
  if (!response.ok) throw await problemOf(response);
  return response.blob();
}

/** Request JSON; a service that is busy is asked again when it says so. */
async function request(path, options = {}, onWait = () => {}) {
  for (let left = TRIES - 1; ; left--) {
    const response = await send(path, options);
    if (response.ok) return response.json();
    const seconds = Number(response.headers.get("Retry-After"));
    if (!left || !seconds || ![429, 503].includes(response.status)) throw await problemOf(response);
    onWait();
    await pause(Math.min(seconds, LONGEST_WAIT_SECONDS) * 1000, options.signal);
  }
}

async function send(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The service cannot be reached. Is it still running?");
  }
}

async function problemOf(response) {
  const { detail } = await response.json().catch(() => ({}));
  const text = detail ?? `the service answered with ${response.status}`;
  return new Problem(`${text[0].toUpperCase()}${text.slice(1)}.`);
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
