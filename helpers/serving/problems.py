"""Errors on their way out: a status and one JSON sentence for each, and never a path or a traceback."""

import logging
import re

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from helpers.data.images import DamagedImage, ImageTooLarge, UnsupportedImage
from helpers.delivery.bundle import BundleError
from helpers.delivery.model_dir import ModelDirError
from helpers.delivery.storage import StorageError
from helpers.inference.batcher import PredictorClosed, QueueFull
from helpers.inference.engine import ModelRejected
from helpers.inference.job import DeadlineExceeded
from helpers.inference.swap import ChangeUnderWay, NoModelBefore
from helpers.monitoring.feedback import LabelConflict, LogUnavailable, UnknownRequest, WrongPosition
from helpers.registry import UnknownModel
from helpers.serving.upload import MalformedUpload, UploadError, UploadTooLarge

PREDICTION_ERRORS = {
    MalformedUpload: 400,
    UploadTooLarge: 413,
    UploadError: 422,
    DamagedImage: 400,
    ImageTooLarge: 413,
    UnsupportedImage: 415,
    ModelRejected: 500,
    QueueFull: 503,
    PredictorClosed: 503,
    DeadlineExceeded: 504,
}
FEEDBACK_ERRORS = {UnknownRequest: 404, LabelConflict: 409, WrongPosition: 422, LogUnavailable: 503}
KNOWN = PREDICTION_ERRORS | FEEDBACK_ERRORS
LOAD_ERRORS = {
    ModelDirError: 400,
    UnknownModel: 404,
    NoModelBefore: 404,
    ChangeUnderWay: 409,
    BundleError: 422,
    ModelRejected: 422,
    StorageError: 503,
}
RETRY = {"Retry-After": "1"}
FAILED = "the server failed on this request; its log says why"


_logger = logging.getLogger(__name__)


class Problem(BaseModel):
    """An error: what was wrong, and what to do next."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"detail": "the PNG image is cut off after 512 bytes; send the whole file again"}]
        }
    )
    detail: str


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


def describe(error: Exception) -> tuple[int, str, dict[str, str]]:
    """Status, sentence and headers of what a route raised; what is not known is logged and said to be the server's."""
    if isinstance(error, HTTPException):
        return error.status_code, error.detail, dict(error.headers or {})
    status = next((code for kind, code in KNOWN.items() if isinstance(error, kind)), None)
    if status is None:
        _logger.error("a request failed", exc_info=error)
        return 500, FAILED, {}
    return status, str(error), RETRY if status == 503 else {}


def explain(error: dict) -> str:
    """The sentence for what pydantic says is wrong with a request."""
    kind, given, where = error["type"], error["input"], ".".join(map(str, error["loc"]))
    if kind == "json_invalid":
        at = f"at character {error['loc'][-1] + 1}: {error['ctx']['error']}"
        return f"the body is not valid JSON ({at}); correct it and send it again"
    if where == "body" and (kind == "missing" or isinstance(given, bytes)):
        return "send the body as JSON, with Content-Type: application/json"
    if kind == "missing":
        return f"{where}: {error['msg']}"
    got = f"got {str(given)[:100]!r}"
    return f"the body must be a JSON object, {got}" if where == "body" else f"{where}: {error['msg']}, {got}"


def problem(path: str, status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer to a request for `path` that went wrong, in the words of the protocol that it belongs to."""
    key = "error" if path.startswith("/v2") else "detail"
    return JSONResponse({key: sentence}, status, headers)


def handle_errors(app: FastAPI) -> None:
    """Turns what routes are known to raise into a status and a `Problem`; `serving.guard` answers for the rest."""

    async def failed(request, error):
        return problem(request.url.path, *describe(error))

    async def invalid(request, error):
        return problem(request.url.path, 422, explain(error.errors()[0]))

    async def refused(request, error):
        return problem(request.url.path, *describe(error))

    async def gone(request, error):
        return problem(request.url.path, 400, "the client left before its request was whole")

    app.add_exception_handler(ClientDisconnect, gone)
    for kind in KNOWN:
        app.add_exception_handler(kind, failed)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, refused)
