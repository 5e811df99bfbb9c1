"""The plain way to serve image search by speech, as the baseline of `serve`: what a few lines of known libraries give.

FastAPI, `whisper.transcribe` with its defaults, open_clip's text tower and a NumPy product, one request after the other
(Whisper's decoder keeps its cache in hooks on the model, which two threads at once would mix up).

    python -m brewclip.benchmarks.plain_server INDEX PORT NUM_THREADS
"""

import sys
import threading

import numpy as np
import torch
import uvicorn
import whisper
from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

from brewclip.audio import decode_audio
from brewclip.pretrained.load import load_clip
from brewclip.pretrained.whisper import load_whisper
from brewclip.serving.index import ImageIndex

_TOP = 20


def build_plain_app(index: ImageIndex, whisper_name: str, num_threads: int) -> FastAPI:
    """Build an app whose `POST /search` takes a sound file and returns the ids of the nearest images."""
    listener = load_whisper(whisper_name)
    clip = load_clip(next(iter(index.identity["frozen_sha256"])))
    vectors = np.asarray(index.vectors, np.float32)
    lock, app = threading.Lock(), FastAPI()

    def answer(data: bytes) -> dict[str, object]:
        with lock, torch.inference_mode():
            torch.set_num_threads(num_threads)
            text = str(whisper.transcribe(listener, decode_audio(data), language="en", fp16=False)["text"])
            features = clip.model.encode_text(clip.tokenize([text]))[0].numpy()  # type: ignore[operator]
        scores = vectors @ (features / np.linalg.norm(features))
        return {"transcript": text, "results": [index.entry(int(row)).image_id for row in np.argsort(-scores)[:_TOP]]}

    @app.get("/healthz")
    async def health() -> str:
        return "ok"

    @app.post("/search")
    async def search(request: Request) -> dict[str, object]:
        return await run_in_threadpool(answer, await request.body())

    return app


if __name__ == "__main__":
    folder, port, threads = sys.argv[1:]
    app = build_plain_app(ImageIndex.open(folder), "base", int(threads))
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")
