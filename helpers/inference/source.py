"""Where the models come from that a server loads: a bucket, and until it holds one, a bundle on disk."""

import os
from pathlib import Path

from helpers.delivery.bundle import MANIFEST
from helpers.delivery.model_dir import resolve
from helpers.delivery.storage import StorageError, open_store
from helpers.inference.loader import LoadedModel, load_model
from helpers.registry import UnknownModel
from helpers.workspace import bucket_url

MODEL_DIR = "models/cifar100-vgg16"


class ModelSource:
    """Loads models by model_dir from a bucket.

    Args:
        bucket: url of the store; see `workspace.bucket_url`.
        model_dir: the one that `fallback` stands in for.
        fallback: folder of a bundle that serves while the bucket has no `model_dir`, and at the first load also if the
            bucket is out of reach. Once the bucket gave a model it does not come back: that would be a silent rollback.
        cache: folder for downloads; ``cifar100-suite`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
        engine, threads: see `inference.loader.load_model`.

    Attributes:
        served_from: of the model loaded last, for people.
    """

    def __init__(
        self,
        bucket: str = "",
        *,
        model_dir: str = MODEL_DIR,
        fallback: Path | None = None,
        cache: Path | None = None,
        engine: str = "auto",
        threads: int | None = None,
    ) -> None:
        self.bucket, self.model_dir, self.fallback = bucket_url(bucket), model_dir, fallback
        self.store = open_store(self.bucket)
        self.cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cifar100-suite"
        self.engine, self.threads = engine, threads
        self.served_from = ""
        self._bucket_has_served = False

    def load(self, model_dir: str) -> LoadedModel:
        """The checked model of `model_dir`.

        Raises:
            ModelDirError, UnknownModel, StorageError: as `delivery.model_dir.resolve`.
            BundleError, ModelRejected, ValueError: as `inference.loader.load_model`.
        """
        try:
            path = resolve(self.store, model_dir, self.cache)
        except (UnknownModel, StorageError) as error:
            unreachable = not isinstance(error, UnknownModel)
            if model_dir != self.model_dir or self._bucket_has_served or not self._has_fallback():
                raise
            if unreachable and self.served_from:
                raise
            why = f"is out of reach: {error}" if unreachable else f"has no {model_dir}"
            model = load_model(self.fallback, engine=self.engine, threads=self.threads)
            self.served_from = f"{self.fallback} ({self.bucket} {why})"
            return model
        model = load_model(path, engine=self.engine, threads=self.threads)
        self.served_from, self._bucket_has_served = f"{model_dir} in {self.bucket}", True
        return model

    def _has_fallback(self):
        return self.fallback is not None and (self.fallback / MANIFEST).is_file()
