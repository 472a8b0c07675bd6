"""The shapes of what the service takes and gives, as its documentation shows them."""

import json

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from helpers.delivery.bundle import DataSource
from helpers.inference.loader import LoadedModel
from helpers.inference.prediction import Prediction
from helpers.inference.swap import Swap
from helpers.serving.upload import FIELD

TOP_K = 5

_IMAGE = {"type": "string", "format": "binary", "description": "a PNG or JPEG; its content decides, not its name"}


def _form(schema):
    return {"schema": {"type": "object", "required": [FIELD], "properties": {FIELD: schema}}}


ONE_IMAGE = {"required": True, "content": {"multipart/form-data": _form(_IMAGE)}}
MANY_IMAGES = {
    "required": True,
    "content": {
        "multipart/form-data": _form({"type": "array", "items": _IMAGE, "minItems": 1}),
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    },
}

HOME_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>CIFAR-100 classifier</title>
<h1>CIFAR-100 classifier</h1>
<p>Send a PNG or JPEG image to <code>POST /predict_single</code> and get the name of what it shows:</p>
<pre>curl -F file=@apple.png URL/predict_single</pre>
<p>Every route is described and can be tried at <a href="/docs">/docs</a>;
<a href="/model">/model</a> says which model answers.</p>
</html>
"""


class Flip(BaseModel):
    """Images that one model took for one class and the next for another."""

    before: str = Field(examples=["apple"])
    now: str = Field(examples=["pear"])
    count: int = Field(examples=[3])


class ReplayAnswer(BaseModel):
    """What both models say about the same recent images; milliseconds are of an image, in batches."""

    images: int
    flips: list[Flip]
    milliseconds_before: float
    milliseconds_now: float


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
    replay: ReplayAnswer | None = Field(None, description="if one was asked for and there were requests to replay")

    @classmethod
    def of(cls, swap: Swap) -> "Message":
        message = f"version {swap.new} of {swap.model_dir} serves now, in place of {swap.old}"
        if swap.replay is None:
            return cls(message=message)
        flips = [Flip(before=before, now=now, count=count) for before, now, count in swap.replay.flips]
        return cls(message=message, replay=ReplayAnswer(**vars(swap.replay) | {"flips": flips}))


class CandidateComparison(BaseModel):
    """What the candidate and the model that serves said to the same images; see `serving.shadow.Comparison`."""

    candidate: str = Field(description="its version", examples=["20261101T120000Z-0123456789ab"])
    production: str = Field(description="the version that answered", examples=["20261001T080000Z-ba9876543210"])
    images: int = Field(description="that the candidate saw, or as a canary answered")
    agreement: float | None = Field(description="share of them that both give the same class; null of a canary")
    confidence_candidate: float
    confidence_production: float
    milliseconds_candidate: float = Field(description="an image in the engine, on average")
    milliseconds_production: float
    passed_over: int = Field(description="batches that came while too many waited")
    problem: str = Field(description="why the candidate cannot be loaded or was sent back, or what it failed with last")


class Status(BaseModel):
    status: str


class Candidate(BaseModel):
    """A class and its probability, 0 to 1."""

    model_config = ConfigDict(populate_by_name=True)
    class_name: str = Field(alias="class", examples=["apple"])
    probability: float = Field(examples=[0.93])


class Outcome(Candidate):
    """The most probable class of a picture, and the first classes in order."""

    class_index: int = Field(examples=[0])
    top: list[Candidate]


class PredictionAnswer(Outcome):
    """An outcome, and what made the answer."""

    model_version: str = Field(examples=["20261101T120000Z-0123456789ab"])
    request_id: str = Field(
        description="also in the header X-Request-ID", examples=["4f9d6bb0c7d14c5f8f1c3f0f7f1f9f55"]
    )
    milliseconds: float = Field(description="decoding, queue and engine", examples=[4.2])

    @classmethod
    def of(cls, prediction: Prediction, top_k: int, request_id: str, seconds: float) -> "PredictionAnswer":
        return cls(
            **_outcome(prediction, top_k),
            model_version=prediction.version,
            request_id=request_id,
            milliseconds=round(seconds * 1000, 3),
        )


class BatchAnswer(BaseModel):
    """One outcome for each picture, in their order."""

    model_config = ConfigDict(protected_namespaces=())
    predictions: list[Outcome]
    model_version: str = Field(examples=["20261101T120000Z-0123456789ab"])
    request_id: str = Field(description="also in the header X-Request-ID")
    milliseconds: float = Field(description="decoding, queue and engine, of all together")

    @classmethod
    def of(cls, predictions: list[Prediction], top_k: int, request_id: str, seconds: float) -> "BatchAnswer":
        return cls(
            predictions=[Outcome(**_outcome(prediction, top_k)) for prediction in predictions],
            model_version=predictions[0].version,
            request_id=request_id,
            milliseconds=round(seconds * 1000, 3),
        )


def _outcome(prediction, top_k):
    row, names = prediction.probabilities, prediction.class_names
    order = np.argsort(-row, kind="stable")[:top_k]
    return {
        "class_name": prediction.class_name,
        "class_index": prediction.class_index,
        "probability": float(row[prediction.class_index]),
        "top": [Candidate(class_name=names[i], probability=float(row[i])) for i in order],
    }


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


def render_name(prediction: Prediction, request_id: str, seconds: float) -> bytes:
    """The class alone, as a bare JSON string."""
    return json.dumps(prediction.class_name, ensure_ascii=False).encode()


def render(prediction: Prediction, request_id: str, seconds: float, top_k: int = TOP_K) -> bytes:
    """A `PredictionAnswer` in JSON."""
    return PredictionAnswer.of(prediction, top_k, request_id, seconds).model_dump_json(by_alias=True).encode()


RENDERS = {b"/predict_single": render_name, b"/predict": render}  # of the routes that need no app
