"""The routes of the model: which one answers, another in its place, and what a candidate would have said."""

import logging
from collections.abc import Callable
from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, HTTPException, Query, Request

from helpers.inference.predictor import RECENT
from helpers.inference.swap import Swapper
from helpers.monitoring.metrics import Metrics
from helpers.serving.answers import CandidateComparison, Message, ModelCard
from helpers.serving.problems import LOAD_ERRORS, RETRY, problems, without_paths

_logger = logging.getLogger(__name__)


def model_routes(swapper: Swapper, guard: Callable, metrics: Metrics) -> APIRouter:
    """Of which those that change the model depend on `guard`, and are counted in `metrics`."""
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
