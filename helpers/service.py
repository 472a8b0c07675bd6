"""The web service: predictions for anyone, changes of the model for whoever may, errors in one sentence."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Annotated

import anyio
import numpy as np
from fastapi import APIRouter, Depends, FastAPI, File, HTTPException, Query, Request, UploadFile
from fastapi.responses import HTMLResponse

from helpers.guard import RequestFrame, admin_guard
from helpers.images import decode_image
from helpers.monitoring import Monitor
from helpers.observer import Observer
from helpers.predictor import DeadlineExceeded, LoadedModel, Prediction, Predictor, QueueFull
from helpers.wire import (
    HOME_PAGE,
    LOAD_ERRORS,
    RETRY,
    Candidate,
    Message,
    ModelCard,
    PredictionAnswer,
    Status,
    handle_errors,
    problems,
    without_paths,
)

MAX_BODY_BYTES = 16 * 2**20
DECODERS = 4  # threads; each may need 200 MB for the largest image that is accepted

log = logging.getLogger(__name__)


def create_app(
    predictor: Predictor,
    load: Callable[[str], LoadedModel],
    model_dir: str,
    *,
    monitor: Monitor | None = None,
    admin_token: str | None = None,
    require_token: bool = False,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> FastAPI:
    """The service over `predictor`, which stays the caller's to close.

    Args:
        load: gives the checked model for a model_dir; called in a thread, one call at a time.
        model_dir: where the model of `predictor` came from; what `/reload_model` loads again.
        max_body_bytes: of a request; more is answered 413.
        monitor: told of each prediction after it was made, in order; what it raises is logged.
        admin_token: bearer token that `/reload_model` and `/change_model` ask for.
        require_token: True where others than this machine can reach the server: without a token these two then
            answer 403. False without a token: they are open to this machine's own address.
    """
    observer = Observer(monitor)

    @asynccontextmanager
    async def lifespan(app):
        app.state.decoders = anyio.CapacityLimiter(DECODERS)
        async with observer.running():
            yield

    app = FastAPI(
        title="CIFAR-100 classifier",
        summary="Names what a small picture shows: one of 100 classes.",
        version="1.0",
        lifespan=lifespan,
        openapi_tags=[
            {"name": "predictions", "description": "Pictures in, class names out."},
            {"name": "model", "description": "Which model answers, and changing it without a pause."},
            {"name": "health", "description": "For load balancers and container probes."},
        ],
    )
    app.state.draining = False
    app.state.observer = observer
    app.add_middleware(RequestFrame, max_body_bytes=max_body_bytes)
    app.include_router(_prediction_routes(predictor, observer))
    app.include_router(_model_routes(predictor, load, model_dir, admin_guard(admin_token, require_token)))
    app.include_router(_health_routes(predictor))
    handle_errors(app, max_body_bytes)

    @app.get("/", response_class=HTMLResponse, operation_id="home", include_in_schema=False)
    async def home() -> str:
        return HOME_PAGE

    return app


def _prediction_routes(predictor, observer):
    router = APIRouter(tags=["predictions"], responses=problems(400, 408, 413, 415, 422, 500, 503, 504))
    image_file = File(description="a PNG or JPEG image; its content decides, not its name")

    async def predict(request: Request, file: UploadFile) -> tuple[Prediction, float]:
        start = perf_counter()
        if predictor.waiting >= predictor.queue_size:  # before spending a decoder on it
            raise QueueFull(f"{predictor.queue_size} requests are waiting already; try again in a second")
        data = await file.read()
        try:
            with anyio.fail_after(predictor.deadline_s):
                image = await anyio.to_thread.run_sync(decode_image, data, limiter=request.app.state.decoders)
                prediction = await asyncio.wrap_future(predictor.submit(image))
        except TimeoutError:
            raise DeadlineExceeded(f"no answer within {predictor.deadline_s:g} s; try again") from None
        seconds = perf_counter() - start
        observer.put(prediction, seconds)
        return prediction, seconds

    @router.post("/predict_single", operation_id="predict_single", response_description="the name of the class")
    async def predict_single(request: Request, file: Annotated[UploadFile, image_file]) -> str:
        """The class that the picture shows, as a bare JSON string."""
        prediction, _ = await predict(request, file)
        return prediction.class_name

    @router.post("/predict", operation_id="predict")
    async def predict_top(
        request: Request, file: Annotated[UploadFile, image_file], top_k: Annotated[int, Query(ge=1, le=100)] = 5
    ) -> PredictionAnswer:
        """The most probable classes with their probabilities, and the version of the model that says so."""
        prediction, seconds = await predict(request, file)
        order = np.argsort(-prediction.probabilities, kind="stable")[:top_k]
        row, names = prediction.probabilities, prediction.class_names
        return PredictionAnswer(
            class_name=prediction.class_name,
            class_index=prediction.class_index,
            probability=float(row[prediction.class_index]),
            top=[Candidate(class_name=names[i], probability=float(row[i])) for i in order],
            model_version=prediction.version,
            request_id=request.state.request_id,
            milliseconds=round(seconds * 1000, 3),
        )

    return router


def _model_routes(predictor, load, model_dir, guard):
    router = APIRouter(tags=["model"])
    admin = APIRouter(dependencies=[Depends(guard)], responses=problems(400, 401, 403, 404, 409, 422, 500, 503))
    current, changing = {"model_dir": model_dir}, asyncio.Lock()

    async def change(wanted: str) -> Message:
        if changing.locked():
            raise HTTPException(409, "another change of the model is under way; try again when it is done", RETRY)
        async with changing:
            old = predictor.model.version
            try:
                model = await anyio.to_thread.run_sync(load, wanted)
            except Exception as error:
                status = next((code for kind, code in LOAD_ERRORS.items() if isinstance(error, kind)), 500)
                reason = without_paths(str(error))
                if status == 500:
                    log.exception("could not load %r", wanted)
                    reason = "the model could not be loaded; the server's log says why"
                headers = RETRY if status == 503 else None
                raise HTTPException(status, f"{reason}; version {old} goes on serving", headers) from error
            predictor.swap(model)
            current["model_dir"] = wanted
        return Message(message=f"version {model.version} of {wanted} serves now, in place of {old}")

    @admin.get("/reload_model", operation_id="reload_model")
    @admin.post("/reload_model", operation_id="reload_model_by_post")
    async def reload_model() -> Message:
        """Loads the model again that the current model_dir points to."""
        return await change(current["model_dir"])

    @admin.get("/change_model", operation_id="change_model")
    @admin.post("/change_model", operation_id="change_model_by_post")
    async def change_model(
        string_input: Annotated[
            str,
            Query(
                max_length=1024,
                description="model_dir under the configured bucket",
                examples=["models/cifar100-vgg16", "models/cifar100-vgg16/versions/20261101T120000Z-0123456789ab"],
            ),
        ],
    ) -> Message:
        """Loads the model of another model_dir; if it cannot be loaded, the old one goes on serving."""
        return await change(string_input)

    @router.get("/model", operation_id="describe_model")
    async def describe_model() -> ModelCard:
        """The model that answers now."""
        return ModelCard.of(predictor.model, current["model_dir"])

    router.include_router(admin)
    return router


def _health_routes(predictor):
    router = APIRouter(prefix="/health", tags=["health"])

    @router.get("/live", operation_id="is_live")
    async def live() -> Status:
        """The process answers."""
        return Status(status="live")

    @router.get("/ready", operation_id="is_ready", responses=problems(503))
    async def ready(request: Request) -> Status:
        """A model is loaded, and the server is not about to stop."""
        if request.app.state.draining or predictor.closed:
            raise HTTPException(503, "the server is stopping; send requests elsewhere", RETRY)
        return Status(status="ready")

    return router
