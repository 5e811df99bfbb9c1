// Images and recordings from elsewhere: chosen, dropped, or pasted.

import { readable } from "./sound.js";

/**
 * Watch for files.
 *
 * @param {object} elements
 * @param {HTMLInputElement} elements.input
 * @param {HTMLElement} elements.overlay shown while a file is dragged over the page
 * @param {(query: object) => void} onQuery
 * @param {(text: string) => void} onProblem
 */
export function watchFiles({ input, overlay }, onQuery, onProblem) {
  const take = async (files) => {
    const file = [...files].find(({ type }) => /^(image|audio|video)\//.test(type)) ?? files[0];
    if (!file) return;
    try {
      onQuery(await queryOf(file));
    } catch (error) {
      onProblem(error.message);
    }
  };
  input.addEventListener("change", () => {
    take(input.files);
    input.value = ""; // so that the same file can be chosen again
  });
  addEventListener("paste", (event) => event.clipboardData?.files.length && take(event.clipboardData.files));
  const dragsFile = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!dragsFile(event)) return;
    event.preventDefault();
    overlay.classList.add("shown");
  });
  addEventListener("dragleave", (event) => event.relatedTarget ?? overlay.classList.remove("shown"));
  addEventListener("drop", (event) => {
    overlay.classList.remove("shown");
    if (!dragsFile(event)) return;
    event.preventDefault();
    take(event.dataTransfer.files);
  });
}

async function queryOf(file) {
  if (file.type.startsWith("image/")) return { kind: "image", blob: file };
  if (!/^(audio|video)\//.test(file.type)) throw new Error(`${file.name} is neither an image nor a recording.`);
  try {
    return { kind: "audio", blob: await readable(file), weight: null };
  } catch {
    throw new Error(`This browser cannot decode ${file.name}. WAV, FLAC, OGG and MP3 always work.`);
  }
}
