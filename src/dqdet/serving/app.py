"""The web application: an image in, what a model finds out, and a page to try it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.resources import files
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from dqdet.data.scenes.scene import draw_scene, render
from dqdet.errors import DqdetError, UnfitImage, lack_of_memory
from dqdet.formats.image_files import as_rgb, one_line, pages
from dqdet.formats.results import coco_results
from dqdet.predict.predictor import Predictor, Prepared, objects
from dqdet.serving.waiting import Busy, Line
from dqdet.types import Outcome, Segmentation

EXAMPLES = 4
MEBI = 2**20


@dataclass(frozen=True)
class Limits:
    """What a client may ask for."""

    mebibytes: float = 20.0  # of a file
    megapixels: float = 50.0  # of its image
    waiting: int = 64  # requests in line


def make_app(predictor: Predictor, limits: Limits, at_once: int = 2) -> FastAPI:
    """The application; nothing that a client sends is written to disk.

    Args:
        predictor: of the model.
        limits: of requests.
        at_once: batches that are worked on at the same time.

    Raises:
        DqdetError: the model is one of videos.
    """
    if predictor.config.data.task == "video":
        raise DqdetError("a model of data.task=video takes no single images, which are what is served")
    line = Line(predictor, limits.waiting, at_once)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        of_pillow = Image.MAX_IMAGE_PIXELS
        if of_pillow is not None:  # from twice as many on it opens no file
            Image.MAX_IMAGE_PIXELS = max(of_pillow, round(limits.megapixels * 1e6))
        line.start()
        yield
        await run_in_threadpool(line.stop)
        Image.MAX_IMAGE_PIXELS = of_pillow

    app = FastAPI(title="dqdet", description="Objects in images, by one trained model.", lifespan=life)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        return files("dqdet.serving").joinpath("page.html").read_text("utf-8")

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Whether the model is there, what it knows, and how many requests wait for it."""
        return {
            "status": "ok",
            "task": predictor.config.data.task,
            "queries": predictor.config.queries.kind,
            "categories": predictor.categories,
            "waiting": line.waiting.qsize(),
        }

    @app.get("/examples/{number}.png", response_class=Response, include_in_schema=False)
    def example(number: int) -> Response:
        if not 0 <= number < EXAMPLES:
            raise HTTPException(404, f"examples are 0 to {EXAMPLES - 1}")
        return Response(_example(number), media_type="image/png")

    body = {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}, "required": True}

    answers: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {"schema": {"type": "object"}}}}}

    @app.post("/predict", openapi_extra={"requestBody": body}, response_class=Response, responses=answers)
    async def predict(
        request: Request,
        threshold: Annotated[float, Query(ge=0, le=1, description="Lowest score.")] = 0.0,
        coefficients: Annotated[bool, Query(description="The combination coefficients W, too.")] = False,
    ) -> Response:
        """What is found in the image that is the body of the request, as entries of a COCO results file."""
        content = await _body(request, limits)
        read = partial(_read, content, limits, predictor)
        answer = partial(_answer, predictor, content, threshold, coefficients)
        try:
            answered = line.join(read, answer)
        except Busy:
            wait = {"Retry-After": "1"}
            raise HTTPException(503, f"{limits.waiting} requests wait already; try again", wait) from None
        try:
            return Response(await asyncio.wrap_future(answered), media_type="application/json")
        except UnfitImage as error:
            raise HTTPException(422, str(error)) from error
        except DqdetError as error:
            raise HTTPException(500, str(error)) from error
        except (MemoryError, RuntimeError) as error:
            if (lack := lack_of_memory(error)) is None:
                raise
            raise HTTPException(507, f"{lack} for this image; send a smaller one") from error

    return app


async def _body(request: Request, limits: Limits) -> bytes:
    """The body, of which no more is read than is allowed."""
    content = bytearray()
    try:
        async for part in request.stream():
            content += part
            if len(content) > limits.mebibytes * MEBI:
                raise HTTPException(413, f"the file has more than {limits.mebibytes:g} MiB; send a smaller one")
    except ClientDisconnect as error:
        raise HTTPException(400, "the upload broke off") from error  # which the log shows, and nobody receives
    if not content:
        raise HTTPException(400, "no image; send the bytes of an image file as the body")
    return bytes(content)


def _read(content: bytes, limits: Limits, predictor: Predictor) -> Prepared:
    return predictor.prepared(_decoded(content, limits))


def _decoded(content: bytes, limits: Limits) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content)) as opened:
            pixels = opened.width * opened.height / 1e6
            if pixels > limits.megapixels:
                raise HTTPException(
                    413, f"the image has {pixels:.3g} megapixels, more than {limits.megapixels:g}; send a smaller one"
                )
            if (count := len(pages(opened))) > 1:
                raise HTTPException(415, f"a {opened.format} of {count} frames or pages; send one image")
            return as_rgb(opened)
    except HTTPException:
        raise
    except Image.DecompressionBombError as error:
        raise HTTPException(
            413, f"the image has more than {limits.megapixels:g} megapixels; send a smaller one"
        ) from error
    except Exception as error:  # of Pillow: whatever is wrong with a file
        raise HTTPException(415, f"cannot be read as an image ({one_line(error)}); send a JPEG or PNG") from error


def _answer(
    predictor: Predictor, content: bytes, threshold: float, coefficients: bool, image: Prepared, outcome: Outcome
) -> bytes:
    """What was found, as JSON; FastAPI's own way to it would take a third as long as a small network."""
    found = objects(outcome)
    entries = coco_results(0, found, predictor.category_ids, "bbox")
    if found.masks is not None:
        for entry, mask in zip(entries, found.masks.rles, strict=True):
            entry["segmentation"] = mask
    names = dict(zip(predictor.category_ids, predictor.config.classes, strict=True))
    height, width = image.size
    answer: dict[str, Any] = {
        "width": width,
        "height": height,
        "annotations": [
            {**entry, "category": names[entry["category_id"]]} for entry in entries if entry["score"] >= threshold
        ],
    }
    if isinstance(outcome, Segmentation):
        answer["segments"] = predictor.described(outcome.panoptic).segments
    if coefficients:
        try:
            answer["coefficients"] = predictor.coefficients([content])[0].tolist()
        except DqdetError as error:
            raise HTTPException(422, str(error)) from error
    return msgspec.json.encode(answer)


@lru_cache
def _example(number: int) -> bytes:
    """A generated scene, as a PNG file."""
    file = io.BytesIO()
    render(draw_scene(number), 256)[0].save(file, "PNG")
    return file.getvalue()
