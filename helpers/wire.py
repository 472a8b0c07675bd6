"""What goes over the wire: the shapes of the answers, and one JSON sentence for every error."""

import re

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from helpers.bundle import BundleError, DataSource
from helpers.images import DamagedImage, ImageTooLarge, UnsupportedImage
from helpers.model_dir import ModelDirError
from helpers.predictor import DeadlineExceeded, LoadedModel, ModelRejected, PredictorClosed, QueueFull
from helpers.registry import UnknownModel
from helpers.storage import StorageError

PREDICTION_ERRORS = {
    DamagedImage: 400,
    ImageTooLarge: 413,
    UnsupportedImage: 415,
    ModelRejected: 500,
    QueueFull: 503,
    PredictorClosed: 503,
    DeadlineExceeded: 504,
}
LOAD_ERRORS = {ModelDirError: 400, UnknownModel: 404, BundleError: 422, ModelRejected: 422, StorageError: 503}
RETRY = {"Retry-After": "1"}

HOME_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>CIFAR-100 classifier</title>
<h1>CIFAR-100 classifier</h1>
<p>Send a PNG or JPEG image to <code>POST /predict_single</code> and get the name of what it shows:</p>
<pre>curl -F file=@apple.png URL/predict_single</pre>
<p>Every route is described and can be tried at <a href="/docs">/docs</a>;
<a href="/model">/model</a> says which model answers.</p>
</html>
"""


class Problem(BaseModel):
    """An error: what was wrong, and what to do next."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"detail": "the PNG image is cut off after 512 bytes; send the whole file again"}]
        }
    )
    detail: str


class Message(BaseModel):
    """What was done."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "message": "version 20261101T120000Z-0123456789ab of models/cifar100-vgg16 serves now, "
                    "in place of 20261001T080000Z-ba9876543210"
                }
            ]
        }
    )
    message: str


class Status(BaseModel):
    status: str


class Candidate(BaseModel):
    """A class and its probability, 0 to 1."""

    model_config = ConfigDict(populate_by_name=True)
    class_name: str = Field(alias="class", examples=["apple"])
    probability: float = Field(examples=[0.93])


class PredictionAnswer(Candidate):
    """The most probable class, the runners-up in order, and what made the answer."""

    class_index: int = Field(examples=[0])
    top: list[Candidate]
    model_version: str = Field(examples=["20261101T120000Z-0123456789ab"])
    request_id: str = Field(
        description="also in the header X-Request-ID", examples=["4f9d6bb0c7d14c5f8f1c3f0f7f1f9f55"]
    )
    milliseconds: float = Field(description="decoding, queue and engine", examples=[4.2])


class ModelCard(BaseModel):
    """The model that answers."""

    model_config = ConfigDict(protected_namespaces=())
    model_dir: str
    name: str
    version: str
    created: str
    engine: str
    precision: str = Field(description="what the engine computes in, read from the compiled network", examples=["bf16"])
    threads: int
    data: DataSource
    temperature: float
    classes: int

    @classmethod
    def of(cls, model: LoadedModel, model_dir: str) -> "ModelCard":
        """The card of `model`, which was loaded from `model_dir`."""
        manifest = model.bundle.manifest
        return cls(
            model_dir=model_dir,
            **manifest.model_dump(include={"name", "version", "created", "data", "temperature"}),
            engine=model.engine_name,
            precision=model.precision,
            threads=model.threads,
            classes=len(model.labels.fine),
        )


def problems(*codes: int) -> dict[int, dict]:
    """The error answers of a route, for its OpenAPI entry."""
    return {code: {"model": Problem} for code in codes}


def body_too_large(limit: int) -> str:
    """The sentence for a request body of more than `limit` bytes."""
    return f"the request body has more than {limit} bytes; send a smaller image"


def without_paths(sentence: str) -> str:
    """`sentence` with absolute paths and file:// urls cut to their last part, for it goes to whoever asked.

    What stands in quotes is the asker's own and stays.
    """
    return re.sub(r"(?:file://|(?<![\w:/.'\">]))/(?:[^\s/:;,'\"]+/)*([^\s/:;,'\"]+)", r"\1", sentence)


def handle_errors(app: FastAPI, max_body_bytes: int) -> None:
    """Turns what routes raise into a status and a `Problem`; tracebacks go to the log only."""

    def problem(status, sentence, headers=None):
        return JSONResponse({"detail": sentence}, status, headers)

    async def failed_prediction(request, error):
        status = next(code for kind, code in PREDICTION_ERRORS.items() if isinstance(error, kind))
        return problem(status, str(error), RETRY if status == 503 else None)

    async def invalid(request, error):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if where == "body.file":
            return problem(422, "send multipart/form-data with the image as a file in a field named file")
        return problem(422, f"{where}: {first['msg']}, got {str(first['input'])[:100]!r}")

    async def too_large(request, error):
        return problem(413, body_too_large(max_body_bytes))

    async def unexpected(request, error):
        return problem(500, "the server failed on this request; its log says why")

    for kind in PREDICTION_ERRORS:
        app.add_exception_handler(kind, failed_prediction)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(413, too_large)
    app.add_exception_handler(Exception, unexpected)
