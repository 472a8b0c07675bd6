"""The web service: predictions for anyone, changes of the model for whoever may, errors in one sentence."""

from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, Response
from fastapi.routing import APIRoute

from helpers.inference.loader import LoadedModel
from helpers.inference.predictor import Predictor
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
    PredictionAnswer,
    Status,
    render,
    render_name,
)
from helpers.serving.exchange import STATE, Exchanges
from helpers.serving.guard import RequestFrame, admin_guard
from helpers.serving.inference import Inference
from helpers.serving.model_routes import model_routes
from helpers.serving.monitoring_routes import monitoring_routes
from helpers.serving.open_inference import open_inference_routes
from helpers.serving.problems import handle_errors, problems
from helpers.serving.rate_limit import RateLimit
from helpers.serving.shedding import Shedder

MAX_BODY_BYTES = 16 * 2**20


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
            yield {STATE: (shedder, Exchanges(inference, RENDERS, metrics.responded, max_body_bytes))}

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
    app.include_router(model_routes(swapper, admin_guard(admin_token, require_token), metrics))
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
