"""The Open Inference Protocol, version 2, over REST with JSON: what clients of KServe, Triton and MLServer speak."""

import json
import math
from itertools import chain
from reprlib import repr as short
from typing import Annotated

import numpy as np
from fastapi import APIRouter, HTTPException, Path, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from helpers.data.images import SIZE
from helpers.serving.inference import MAX_IMAGES, Inference
from helpers.serving.upload import MalformedUpload

INPUT = {"name": "images", "datatype": "UINT8", "shape": [-1, SIZE, SIZE, 3]}
EXAMPLE = {"inputs": [INPUT | {"shape": [1, SIZE, SIZE, 3], "data": [0] * 3}]}


class ProtocolError(BaseModel):
    """An error in the protocol's words."""

    error: str


class InvalidTensor(MalformedUpload):
    """An inference request that is not of the protocol, or not of this model (HTTP 400)."""


def open_inference_routes(inference: Inference) -> APIRouter:
    """The routes under ``/v2``, for the model that answers now."""
    predictor = inference.predictor
    router = APIRouter(prefix="/v2", tags=["open inference protocol"])
    one_model = APIRouter(prefix="/models/{name}", responses=_errors(404, 422))
    Name = Annotated[str, Path(examples=["cifar100-vgg16"])]
    Version = Annotated[str, Path(examples=["20261101T120000Z-0123456789ab"])]

    def find(name, version=None):
        model = predictor.model
        ours = model.bundle.manifest.name
        if name != ours or version not in (None, model.version):
            wanted = name if version is None else f"version {version} of {name}"
            raise HTTPException(404, f"{wanted} is not served here; {ours} is, version {model.version}")
        return model

    @router.get("", operation_id="describe_server")
    async def describe_server() -> dict:
        """Name and version of the server."""
        return {"name": "cifar100-notebook-suite", "version": "1.0", "extensions": []}

    @router.get("/health/live", operation_id="is_server_live")
    async def is_live() -> dict:
        """The process answers."""
        return {"live": True}

    @router.get("/health/ready", operation_id="is_server_ready", responses=_errors(503))
    async def is_ready(request: Request) -> dict:
        """A model is loaded, and the server is not about to stop."""
        inference.check_ready(request)
        return {"ready": True}

    @one_model.get("", operation_id="describe_served_model")
    @one_model.get("/versions/{version}", operation_id="describe_served_version")
    async def describe_model(name: Name, version: Version | None = None) -> dict:
        """Inputs and outputs of the model."""
        model = find(name, version)
        classes = len(model.labels.fine)
        outputs = [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, classes]},
            {"name": "class_index", "datatype": "INT64", "shape": [-1]},
            {"name": "class", "datatype": "BYTES", "shape": [-1]},
        ]
        return {"name": name, "versions": [model.version], "platform": "onnx", "inputs": [INPUT], "outputs": outputs}

    @one_model.get("/ready", operation_id="is_model_ready")
    @one_model.get("/versions/{version}/ready", operation_id="is_version_ready")
    async def is_model_ready(name: Name, version: Version | None = None) -> dict:
        """This model answers."""
        return {"name": find(name, version).bundle.manifest.name, "ready": True}

    body = {"required": True, "content": {"application/json": {"schema": {"type": "object"}, "example": EXAMPLE}}}
    errors = _errors(400, 408, 413, 429, 500, 503, 504)

    @one_model.post("/infer", operation_id="infer", openapi_extra={"requestBody": body}, responses=errors)
    @one_model.post(
        "/versions/{version}/infer", operation_id="infer_version", openapi_extra={"requestBody": body}, responses=errors
    )
    async def infer(request: Request, name: Name, version: Version | None = None) -> Response:
        """Class probabilities of uint8 images (n, 32, 32, 3) in one tensor, flat or nested."""
        find(name, version)
        inference.check_rate(request)
        raw, asked = await request.body(), {}

        def decode():
            images, asked["id"], asked["outputs"] = read_request(raw)
            return images

        predictions, _ = await inference.of(request, decode)
        first = predictions[0]
        probabilities = np.stack([prediction.probabilities for prediction in predictions])
        tensors = {
            "probabilities": ("FP32", list(probabilities.shape), probabilities.ravel().tolist()),
            "class_index": ("INT64", [len(predictions)], [prediction.class_index for prediction in predictions]),
            "class": ("BYTES", [len(predictions)], [prediction.class_name for prediction in predictions]),
        }
        wanted = asked["outputs"] or list(tensors)
        if unknown := set(wanted) - set(tensors):
            raise InvalidTensor(f"there is no output {sorted(unknown)[0]!r}; there are {', '.join(tensors)}")
        outputs = [
            dict(zip(("name", "datatype", "shape", "data"), (name, *tensors[name]), strict=True)) for name in wanted
        ]
        identity = {"id": asked["id"]} if asked["id"] is not None else {}
        answer = {"model_name": name, "model_version": first.version, **identity, "outputs": outputs}
        return JSONResponse(answer)

    router.include_router(one_model)
    return router


def read_request(body: bytes) -> tuple[np.ndarray, str | None, list[str]]:
    """The images, uint8 (n, 32, 32, 3), of an inference request; its id; and the names of the outputs it asks for.

    Raises:
        InvalidTensor: if it is not of the protocol, or its tensor is not one of `MAX_IMAGES` images at most.
    """
    try:
        request = json.loads(body)
        (tensor,) = request["inputs"]
        name, datatype, shape, data = (tensor[key] for key in ("name", "datatype", "shape", "data"))
        identity, outputs = request.get("id"), [output["name"] for output in request.get("outputs") or []]
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError) as error:
        raise InvalidTensor(
            'the body must be JSON like {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], '
            '"data": [...]}]}; look at /v2/models/NAME for the tensors'
        ) from error
    if name != INPUT["name"] or datatype != INPUT["datatype"]:
        raise InvalidTensor(f"the input must be images of UINT8, got {name!r:.50} of {datatype!r:.50}")
    whole = isinstance(shape, list) and set(map(type, shape)) == {int}  # 32.0 is 32 and true is 1, for ==
    count = shape[0] if whole and shape[1:] == INPUT["shape"][1:] else 0
    if not 1 <= count <= MAX_IMAGES:
        raise InvalidTensor(f"the shape must be [n, 32, 32, 3] with n from 1 to {MAX_IMAGES}, got {shape!r:.50}")
    images = _pixels(data, [count, SIZE, SIZE, 3])
    if not (identity is None or isinstance(identity, str)) or not all(isinstance(output, str) for output in outputs):
        raise InvalidTensor("id and the names of outputs must be strings")
    if len(set(outputs)) < len(outputs):  # else a small request could ask for a huge answer
        raise InvalidTensor("outputs must name each output once; take out what is there twice")
    try:
        (identity or "").encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can spell and no answer can hold
        raise InvalidTensor(
            f"the id must be text that UTF-8 can hold, got {identity!r:.50}; send another or none"
        ) from error
    return images, identity, outputs


def _pixels(data, shape):
    total, found, part = math.prod(shape), [], data
    while isinstance(part, list):
        found.append(len(part))
        part = part[0] if part else None
    if found not in ([total], shape) and [1, *found] != shape:
        raise _unlike(shape, short(found) if found else short(data))
    for size in found[1:]:  # each level has as many lists as the shape says before the next is looked at
        if set(map(type, data)) != {list} or set(map(len, data)) != {size}:
            raise _unlike(shape, "lists of different length or depth")
        data = list(chain.from_iterable(data))
    if set(map(type, data)) != {int}:  # for isinstance true is one, too
        other = next(value for value in data if type(value) is not int)
        raise InvalidTensor(f"data must be {total} whole numbers, as the shape says, got {short(other)}")
    try:
        pixels = bytearray(data)
    except ValueError:
        other = next(value for value in data if not 0 <= value <= 255)
        raise InvalidTensor(f"data must be from 0 to 255, got {short(other)}") from None
    return np.frombuffer(pixels, np.uint8).reshape(shape)


def _unlike(shape, found):
    return InvalidTensor(
        f"data must be {math.prod(shape)} numbers, flat or nested as {shape}, got {found}; "
        "send row after row, with red, green and blue innermost"
    )


def _errors(*codes):
    return {code: {"model": ProtocolError} for code in codes}
