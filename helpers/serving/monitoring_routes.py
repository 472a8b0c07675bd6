"""The routes of monitoring: metrics for Prometheus, the verdict on drift, and the true classes that clients send."""

import asyncio

import anyio
from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, field_validator
from pydantic_core import PydanticCustomError

from helpers.monitoring.feedback import LogUnavailable
from helpers.monitoring.log_file import LogError
from helpers.monitoring.log_reader import LogReader
from helpers.monitoring.metrics import counter, gauge
from helpers.monitoring.recorder import Recorder
from helpers.serving.guard import watch_guard
from helpers.serving.problems import problems

FEEDBACK_S = 10.0


class Feedback(BaseModel):
    """What a picture really showed."""

    model_config = ConfigDict(extra="forbid")
    request_id: str = Field(max_length=64, examples=["4f9d6bb0c7d14c5f8f1c3f0f7f1f9f55"])
    label: StrictStr | StrictInt = Field(description="name or index of the true class", examples=["apple"])
    position: StrictInt | None = Field(None, ge=0, description="of the image, where the request had several")

    @field_validator("label", mode="before")
    @classmethod
    def _is_name_or_index(cls, label):
        if type(label) not in (str, int):  # True is an int
            raise PydanticCustomError("label", "Input should be the name or the index of a class")
        return label


class FeedbackAnswer(BaseModel):
    """Feedback that is kept."""

    request_id: str
    position: int = Field(examples=[0])
    predicted: str = Field(examples=["pear"])
    label: str = Field(examples=["apple"])
    right: bool = Field(examples=[False])
    known: bool = Field(description="the same was said before; nothing is counted twice", examples=[False])
    accuracy: dict | None = Field(None, description="of the model so far, as feedback and confidence tell it")


def monitoring_routes(recorder: Recorder, predictor, token: str | None) -> APIRouter:
    """``/metrics`` and ``/drift`` for operators, ``/feedback`` for whoever knows a request id."""
    router = APIRouter(tags=["monitoring"])
    operators = APIRouter(dependencies=[Depends(watch_guard(token))], responses=problems(403))

    @operators.get("/metrics", operation_id="read_metrics", response_class=Response)
    def metrics() -> Response:
        """Counts, times and gauges in Prometheus' text format."""
        return Response(recorder.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @operators.get("/drift", operation_id="judge_drift", responses=problems(404))
    def drift() -> dict:
        """Whether the images that come in still look like those the model was checked on."""
        if (report := recorder.watch.reports().get("drift")) is None:
            raise HTTPException(404, "drift is not followed here; serve a model with a reference, and send it images")
        return report

    @router.post("/feedback", operation_id="tell_true_class", responses=problems(400, 404, 408, 409, 413, 422, 503))
    async def feedback(said: Feedback) -> FeedbackAnswer:
        """Keeps the true class of a picture that was answered; the same again changes nothing, another one is 409."""
        names = predictor.model.labels.fine
        label = said.label if isinstance(said.label, int) else {name: i for i, name in enumerate(names)}.get(said.label)
        if label is None or not 0 <= label < len(names):
            rule = f"label must be one of the {len(names)} class names, or an index from 0 to {len(names) - 1}"
            raise HTTPException(422, f"{rule}, got {said.label!r:.100}")
        try:
            async with asyncio.timeout(FEEDBACK_S):
                kept = await asyncio.wrap_future(recorder.label(said.request_id, said.position, label))
        except TimeoutError:
            raise LogUnavailable(f"the prediction log took nothing for {FEEDBACK_S:g} s; try again later") from None
        if not kept.known:
            recorder.metrics.feedback.labels(str(kept.right).lower()).inc()
        reports = await anyio.to_thread.run_sync(recorder.watch.reports)
        return FeedbackAnswer(
            request_id=said.request_id,
            position=kept.position,
            predicted=kept.class_name,
            label=names[label],
            right=kept.right,
            known=kept.known,
            accuracy=reports.get("accuracy"),
        )

    recorder.metrics.samplers += [lambda: _sample_service(recorder, predictor), lambda: _sample_log(recorder)]
    router.include_router(operators)
    return router


def _sample_service(recorder, predictor):
    model, text = predictor.model, "The version that answers"
    labels = ("name", "version", "engine", "precision")
    values = (model.bundle.manifest.name, model.version, model.engine_name, model.precision)
    yield gauge("model_info", text, {values: 1}, labels)
    yield gauge("queue_images", "Images that wait for the engine", {(): predictor.waiting})
    yield gauge("queue_capacity_images", "Images that may wait", {(): predictor.queue_size})
    report = recorder.watch.reports().get("drift")
    if report is not None:
        yield gauge("drift", "1 where the verdict is drift", {(): report.get("verdict") == "drift"})
        capital = {(name,): value for name, value in (report.get("log10_capital") or {}).items()}
        yield gauge("drift_log10_capital", "Evidence against no drift, by score", capital, ("score",))


def _sample_log(recorder):
    log = recorder.log
    yield gauge("log_waiting_rows", "Predictions on their way to the log", {(): recorder.waiting})
    yield gauge("log_capacity_rows", "Predictions that may be", {(): recorder.capacity})
    yield counter("log_lost_rows", "Predictions that found no room", {(): recorder.lost})
    if log is None:
        return
    yield counter("log_written_rows", "Predictions written to the log", {(): log.written})
    yield counter("log_overrun_rows", "Predictions deleted before every reader had them", {(): log.overrun})
    try:
        with LogReader(log.path) as reader:
            last = reader.last
            lags = {(name,): last - cursor.sequence for name, cursor in reader.cursors().items()}
    except LogError:
        return  # said already where the log is written; the other metrics go out
    yield gauge("sink_lag_rows", "Predictions in the log that a sink has not sent", lags, ("sink",))
