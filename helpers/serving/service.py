"""The web service: predictions for anyone, changes of the model for whoever may, errors in one sentence."""

import logging
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, Response
from fastapi.routing import APIRoute

from helpers.inference.loader import LoadedModel
from helpers.inference.predictor import RECENT, Predictor
from helpers.inference.swap import Swapper
from helpers.monitoring.metrics import Metrics
from helpers.monitoring.prediction_log import PredictionLog
from helpers.monitoring.recorder import Recorder
from helpers.monitoring.watch import Watch
from helpers.serving.answers import (
    HOME_PAGE,
    MANY_IMAGES,
    ONE_IMAGE,
    RENDERS,
    TOP_K,
    BatchAnswer,
    CandidateComparison,
    Message,
    ModelCard,
    PredictionAnswer,
    Status,
    render,
    render_name,
)
from helpers.serving.exchange import STATE, Exchanges
from helpers.serving.guard import RequestFrame, admin_guard
from helpers.serving.inference import Inference
from helpers.serving.monitoring_routes import monitoring_routes
from helpers.serving.open_inference import open_inference_routes
from helpers.serving.problems import LOAD_ERRORS, RETRY, handle_errors, problems, without_paths
from helpers.serving.rate_limit import RateLimit
from helpers.serving.shedding import Shedder

MAX_BODY_BYTES = 16 * 2**20

_logger = logging.getLogger(__name__)


def create_app(
    predictor: Predictor,
    load: Callable[[str], LoadedModel],
    model_dir: str,
    *,
    log: PredictionLog | None = None,
    watch: Watch | None = None,
    admin_token: str | None = None,
    require_token: bool = False,
    max_body_bytes: int = MAX_BODY_BYTES,
    rate_limit: str | None = None,
) -> FastAPI:
    """The service over `predictor`, which stays the caller's to close.

    Args:
        load: gives the checked model for a model_dir; called in a thread, one call at a time.
        model_dir: where the model of `predictor` came from; what `/reload_model` loads again.
        max_body_bytes: of a request; more is answered 413.
        log: takes each prediction after it was made, in order; stays the caller's to close.
        watch: follows drift and accuracy.
        admin_token: bearer token that `/reload_model` and `/change_model` ask for.
        require_token: True where others than this machine can reach the server: without a token these two then
            answer 403. False without a token: they are open to this machine's own address.
        rate_limit: prediction requests of one client, e.g. ``"60/minute"`` (see `RateLimit`); more are answered 429.
    """
    metrics = Metrics()
    recorder = Recorder(log, metrics, watch)
    inference = Inference(predictor, recorder, RateLimit(rate_limit) if rate_limit else None)
    swapper = Swapper(predictor, load, model_dir)
    predictor.listeners.add(metrics)

    @asynccontextmanager
    async def lifespan(app):
        with inference.decoders.running(), recorder.running():
            shedder = Shedder(inference.is_full, metrics.responded)
            yield {STATE: (shedder, Exchanges(inference, RENDERS, metrics.responded))}

    app = FastAPI(
        title="CIFAR-100 classifier",
        summary="Names what a small picture shows: one of 100 classes.",
        version="1.0",
        lifespan=lifespan,
        openapi_tags=[
            {"name": "predictions", "description": "Pictures in, class names out."},
            {"name": "model", "description": "Which model answers, and changing it without a pause."},
            {"name": "monitoring", "description": "What it did, whether the pictures changed, and how right it was."},
            {"name": "health", "description": "For load balancers and container probes."},
            {"name": "open inference protocol", "description": "For clients that speak version 2 of it."},
        ],
    )
    app.state.draining = False
    app.state.inference = inference
    app.state.recorder = recorder
    app.state.swapper = swapper
    app.state.shadow = None
    app.add_middleware(RequestFrame, max_body_bytes=max_body_bytes, answered=metrics.responded)
    app.include_router(_prediction_routes(inference))
    app.include_router(_model_routes(swapper, admin_guard(admin_token, require_token), metrics))
    app.include_router(monitoring_routes(recorder, predictor, admin_token))
    app.include_router(_health_routes(inference))
    app.include_router(open_inference_routes(inference))
    handle_errors(app)

    @app.get("/", response_class=HTMLResponse, operation_id="home", include_in_schema=False)
    async def home() -> str:
        return HOME_PAGE

    return app


class _PlainRoute(APIRoute):
    """Of a function that takes the request and gives the answer, which leaves FastAPI nothing to do for it."""

    def get_route_handler(self):
        return self.endpoint


def _prediction_routes(inference):
    responses = problems(400, 408, 413, 415, 422, 429, 500, 503, 504)
    router, plain = (
        APIRouter(tags=["predictions"], responses=responses, route_class=kind) for kind in (APIRoute, _PlainRoute)
    )
    first_classes = Annotated[int, Query(ge=1, le=100, description="how many classes, the most probable first")]

    # The upload is parsed in `serving.upload`, and an answer is a Response already: FastAPI's own way costs more than
    # all the rest of a request.
    @plain.post(
        "/predict_single",
        operation_id="predict_single",
        response_model=str,
        response_description="the name of the class",
        openapi_extra={"requestBody": ONE_IMAGE},
    )
    async def predict_single(request: Request) -> Response:
        """The class that the picture shows, as a bare JSON string."""
        prediction, seconds = await inference.one(request)
        return _json(render_name(prediction, request.state.request_id, seconds))

    @router.post(
        "/predict", operation_id="predict", response_model=PredictionAnswer, openapi_extra={"requestBody": ONE_IMAGE}
    )
    async def predict(request: Request, top_k: first_classes = TOP_K) -> Response:
        """The most probable classes with their probabilities, and the version of the model that says so."""
        prediction, seconds = await inference.one(request)
        return _json(render(prediction, request.state.request_id, seconds, top_k))

    @router.post(
        "/predict_batch",
        operation_id="predict_batch",
        response_model=BatchAnswer,
        openapi_extra={"requestBody": MANY_IMAGES},
    )
    async def predict_batch(request: Request, top_k: first_classes = 1) -> Response:
        """The same for many pictures, or an array of them as `numpy.save` writes it, all by the same version."""
        predictions, seconds = await inference.many(request)
        answer = BatchAnswer.of(predictions, top_k, request.state.request_id, seconds)
        return _json(answer.model_dump_json(by_alias=True))

    router.include_router(plain)
    return router


def _json(body):
    return Response(body, media_type="application/json")


def _model_routes(swapper, guard, metrics):
    router = APIRouter(tags=["model"])
    admin = APIRouter(dependencies=[Depends(guard)], responses=problems(400, 401, 403, 404, 409, 422, 500, 503))
    Replayed = Annotated[int, Query(ge=0, le=RECENT, description="recent images to compare both models on")]

    async def done(change, *arguments) -> Message:
        old = swapper.predictor.model.version
        try:
            swap = await anyio.to_thread.run_sync(change, *arguments)
            metrics.swapped("done")
            return Message.of(swap)
        except Exception as error:
            status = next((code for kind, code in LOAD_ERRORS.items() if isinstance(error, kind)), 500)
            metrics.swapped("busy" if status == 409 else "refused" if status < 500 else "failed")
            reason = without_paths(str(error))
            if status == 500:
                _logger.exception("could not change the model")
                reason = "the model could not be loaded; the server's log says why"
            after = "" if status == 409 else f"; version {old} goes on serving"
            raise HTTPException(status, reason + after, RETRY if status in (409, 503) else None) from error

    @admin.get("/reload_model", operation_id="reload_model", response_model_exclude_none=True)
    @admin.post("/reload_model", operation_id="reload_model_by_post", response_model_exclude_none=True)
    async def reload_model(replay: Replayed = 0) -> Message:
        """Loads the model again that the current model_dir points to."""
        return await done(swapper.change, swapper.model_dir, replay)

    @admin.get("/change_model", operation_id="change_model", response_model_exclude_none=True)
    @admin.post("/change_model", operation_id="change_model_by_post", response_model_exclude_none=True)
    async def change_model(
        string_input: Annotated[
            str,
            Query(
                max_length=1024,
                description="model_dir under the configured bucket",
                examples=["models/cifar100-vgg16", "models/cifar100-vgg16/versions/20261101T120000Z-0123456789ab"],
            ),
        ],
        replay: Replayed = 0,
    ) -> Message:
        """Loads the model of another model_dir; if it cannot be loaded, the old one goes on serving."""
        return await done(swapper.change, string_input, replay)

    @admin.get("/rollback_model", operation_id="rollback_model", response_model_exclude_none=True)
    @admin.post("/rollback_model", operation_id="rollback_model_by_post", response_model_exclude_none=True)
    async def rollback_model(replay: Replayed = 0) -> Message:
        """Puts the model before in place again, at once and without the bucket."""
        return await done(swapper.roll_back, replay)

    @router.get("/model", operation_id="describe_model")
    async def describe_model() -> ModelCard:
        """The model that answers now."""
        return ModelCard.of(swapper.predictor.model, swapper.model_dir)

    @router.get("/candidate", operation_id="compare_candidate", responses=problems(404))
    async def compare_candidate(request: Request) -> CandidateComparison:
        """What the candidate said, or would have said, to the requests of late, beside the model in production."""
        shadow = request.app.state.shadow
        if comparison := shadow and shadow.comparison():
            return CandidateComparison(**vars(comparison))
        raise HTTPException(
            404, "no candidate runs beside this model; start the server with --shadow or --canary, and promote one"
        )

    router.include_router(admin)
    return router


def _health_routes(inference):
    router = APIRouter(prefix="/health", tags=["health"])

    @router.get("/live", operation_id="is_live")
    async def live() -> Status:
        """The process answers."""
        return Status(status="live")

    @router.get("/ready", operation_id="is_ready", responses=problems(503))
    async def ready(request: Request) -> Status:
        """A model is loaded, and the server is not about to stop."""
        inference.check_ready(request)
        return Status(status="ready")

    return router
