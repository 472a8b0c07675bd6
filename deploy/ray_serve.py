"""The service on a Ray cluster: the same FastAPI app in as many replicas as the traffic needs.

    serve run deploy.ray_serve:build bucket=gs://BUCKET max_replicas=8     # here, until Ctrl-C
    serve deploy deploy/ray_serve.yaml                                     # on a cluster

Each replica has a model, a drift detector and counts of its own: `/drift`, `/metrics` and `/feedback` speak of the one
that happens to answer. All follow the alias, which is how the model is changed here; `/reload_model` and
`/change_model`, which would reach a single replica, answer 403.

Needs requirements/ray.lock; the machines need this repository under the same path.
"""

from contextlib import ExitStack
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from helpers.inference.batcher import STOPPING, PredictorClosed
from helpers.inference.predictor import Predictor
from helpers.inference.source import MODEL_DIR, ModelSource
from helpers.monitoring.watch import Watch, make_detector, make_monitor
from helpers.serving.service import create_app
from helpers.serving.watcher import follow
from helpers.workspace import ROOT, bucket_url


class Options(BaseModel):
    """What may follow on the command line, or under ``args`` in the file."""

    model_config = ConfigDict(extra="forbid")

    bucket: str = ""  # url of the store; else $SUITE_BUCKET, else the folder store/ here
    model_dir: str = ""  # under the bucket; else the production version, or the bundle in model/ while there is none
    watch_s: float = Field(1.0, gt=0)  # seconds between two looks at the alias
    cpus: int = Field(1, ge=1)  # of a replica; its engine has as many threads
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(4, ge=1)
    target_ongoing_requests: float = Field(16, gt=0)  # of a replica; more make another one
    upscale_delay_s: float = Field(10, ge=0)
    downscale_delay_s: float = Field(300, ge=0)


@serve.deployment(max_ongoing_requests=64, max_queued_requests=256)  # the engine takes up to 64 images at once
@serve.ingress()
class Classifier:
    """One replica.

    Args:
        bucket: url of the store.
        fallback: folder of a bundle that serves until the bucket has `model_dir`.
    """

    def __init__(self, bucket: str, model_dir: str, fallback: Path | None, watch_s: float, threads: int) -> None:
        source = ModelSource(bucket, model_dir=model_dir, fallback=fallback, threads=threads)
        self.predictor = Predictor(source.load(model_dir))
        watch = Watch(make_detector, make_monitor)
        self._app = create_app(self.predictor, source.load, model_dir, watch=watch, require_token=True)
        self._open = ExitStack()
        self._open.callback(self.predictor.close, timeout=10)
        self._open.enter_context(follow(self._app.state.swapper, bucket, watch_s))

    def __serve_build_asgi_app__(self):
        return self._app

    def check_health(self) -> None:
        """Ray Serve asks, and replaces a replica that raises."""
        if self.predictor.closed:
            raise PredictorClosed(STOPPING)

    def __del__(self) -> None:
        self._open.close()


def build(options: Options) -> serve.Application:
    """The application that ``serve run`` and ``serve deploy`` run."""
    scaling = options.model_dump(include={"min_replicas", "max_replicas", "target_ongoing_requests"})
    scaling |= options.model_dump(include={"upscale_delay_s", "downscale_delay_s"})
    environment = {"PYTHONPATH": str(ROOT)}
    return Classifier.options(
        autoscaling_config=scaling,
        ray_actor_options={"num_cpus": options.cpus, "runtime_env": {"env_vars": environment}},
    ).bind(
        bucket_url(options.bucket),
        options.model_dir or MODEL_DIR,
        None if options.model_dir else ROOT / "model",
        options.watch_s,
        options.cpus,
    )
