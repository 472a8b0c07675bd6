"""Where training starts from: nothing, ImageNet, the weights in ``model/``, or a published version."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.delivery.bundle import MANIFEST, Bundle, read_bundle
from helpers.delivery.graph import read_weights
from helpers.delivery.model_dir import resolve
from helpers.delivery.storage import Store
from helpers.training.backend import load_keras
from helpers.training.model import build_vgg16, load_imagenet_weights, make_config, set_weights
from helpers.workspace import ROOT

KEYWORDS = ("auto", "scratch", "imagenet", "model")


@dataclass(frozen=True)
class Start:
    """A start point.

    Attributes:
        origin: for people.
        config: the arguments of `training.model.build_vgg16`.
        weights: trained arrays by ``layer/variable``, None to initialise.
        imagenet: whether the convolutions start from ImageNet.
        version: of the bundle that the weights are from, None without one.
    """

    origin: str
    config: dict
    weights: dict[str, np.ndarray] | None = None
    imagenet: bool = False
    version: str | None = None

    @property
    def trained(self) -> bool:
        """Whether the network can classify before any training here."""
        return self.weights is not None


def choose_start(
    start_from: str, *, fingerprint: str, mean, std, width: float, dropout: float, store: Store, cache: Path
) -> Start:
    """The start point called `start_from`.

    Args:
        start_from: "scratch"; "imagenet"; "model", the bundle in ``model/``; a model_dir such as
            ``models/cifar100-vgg16`` (see `delivery.model_dir.resolve`); or "auto": ``model/`` if it was trained on
            this data, else scratch.
        fingerprint: of the data to train on.
        mean, std, width, dropout: of a new network; one that was trained keeps its own mean, std and width.
        store, cache: where published versions are, and where they are downloaded to.

    Raises:
        ValueError: if `start_from` is none of these.
        RegistryError, BundleError: if the version or bundle cannot be had.
    """
    scratch = make_config(mean, std, width=width, dropout=dropout)
    if start_from == "auto":
        bundled = read_bundle(ROOT / "model") if (ROOT / "model" / MANIFEST).is_file() else None
        if bundled and bundled.manifest.data.fingerprint == fingerprint:
            return _trained("the bundle in model/", bundled, dropout)
        return Start("scratch", scratch)
    if start_from == "scratch":
        return Start("scratch", scratch)
    if start_from == "imagenet":
        return Start("ImageNet (Keras Applications VGG16)", make_config(mean, std, dropout=dropout), imagenet=True)
    if start_from == "model":
        return _trained("the bundle in model/", read_bundle(ROOT / "model"), dropout)
    if not start_from.removeprefix(f"{store.url}/").startswith("models/"):
        raise ValueError(f"start_from must be one of {', '.join(KEYWORDS)}, or models/<name>[/...], got {start_from!r}")
    return _trained(start_from, read_bundle(resolve(store, start_from, cache)), dropout)


def build_network(start: Start, dtype: str = "float32", seed: int = 0):
    """The Keras network of `start`; `dtype` as in `training.model.build_vgg16`, `seed` of what is not trained yet."""
    load_keras().utils.set_random_seed(seed)
    network = build_vgg16(**start.config, dtype=dtype)
    if start.weights:
        set_weights(network, start.weights)
    if start.imagenet:
        load_imagenet_weights(network)
    return network


def _trained(origin: str, bundle: Bundle, dropout: float) -> Start:
    config = {**bundle.manifest.config, "dropout": dropout}
    return Start(f"{origin}, version {bundle.version}", config, read_weights(bundle.model_path), version=bundle.version)
