"""The web application: an image in, what a model finds out, and a page to try it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool

from dqdet.data.scenes.scene import draw_scene, render
from dqdet.errors import DqdetError
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


def make_app(predictor: Predictor, limits: Limits, at_once: int = 1) -> FastAPI:
    """The application; nothing that a client sends is written to disk.

    Raises:
        DqdetError: the model is one of videos.
    """
    if predictor.config.data.task == "video":
        raise DqdetError("a model of data.task=video takes no single images, which are what is served")
    line = Line(predictor, limits.waiting, at_once)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        line.start()
        yield
        await run_in_threadpool(line.stop)

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
        image, prepared = await run_in_threadpool(_read, content, limits, predictor)
        try:
            outcome = await asyncio.wrap_future(line.join(prepared))
        except Busy:
            wait = {"Retry-After": "1"}
            raise HTTPException(503, f"{limits.waiting} requests wait already; try again", wait) from None
        except DqdetError as error:
            raise HTTPException(500, str(error)) from error
        answer = await run_in_threadpool(_answer, predictor, image, outcome, threshold)
        if coefficients:
            try:
                answer["coefficients"] = (await run_in_threadpool(predictor.coefficients, [image]))[0].tolist()
            except DqdetError as error:
                raise HTTPException(422, str(error)) from error
        # FastAPI's own way to JSON would take a third as long as a small network.
        return Response(msgspec.json.encode(answer), media_type="application/json")

    return app


async def _body(request: Request, limits: Limits) -> bytes:
    """The body, of which no more is read than is allowed."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > limits.mebibytes * MEBI:
            raise HTTPException(413, f"the file has more than {limits.mebibytes:g} MiB; send a smaller one")
    if not content:
        raise HTTPException(400, "no image; send the bytes of an image file as the body")
    return bytes(content)


def _read(content: bytes, limits: Limits, predictor: Predictor) -> tuple[Image.Image, Prepared]:
    image = _decoded(content, limits)
    return image, predictor.prepared(image)


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


def _answer(predictor: Predictor, image: Image.Image, outcome: Outcome, threshold: float) -> dict[str, Any]:
    found = objects(outcome)
    entries = coco_results(0, found, predictor.category_ids, "bbox")
    if found.masks is not None:
        for entry, mask in zip(entries, found.masks.rles, strict=True):
            entry["segmentation"] = mask
    names = dict(zip(predictor.category_ids, predictor.config.classes, strict=True))
    answer: dict[str, Any] = {
        "width": image.width,
        "height": image.height,
        "annotations": [
            {**entry, "category": names[entry["category_id"]]} for entry in entries if entry["score"] >= threshold
        ],
    }
    if isinstance(outcome, Segmentation):
        answer["segments"] = predictor.described(outcome.panoptic).segments
    return answer


@lru_cache
def _example(number: int) -> bytes:
    """A generated scene, as a PNG file."""
    file = io.BytesIO()
    render(draw_scene(number), 256)[0].save(file, "PNG")
    return file.getvalue()
