"""A rehearsal of the alarms: images that change on purpose, sent over HTTP to a service that nobody else uses.

It is a service of its own, since a detector that has rung stays so, and since what is sent must not be counted among
what really came: same model, own server, own detector, own log, which says in itself that it is a rehearsal.
"""

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, sleep

import numpy as np

from helpers.client import Client
from helpers.data.corruptions import CORRUPTIONS, corrupt
from helpers.data.dataset import Dataset
from helpers.hosting import Server
from helpers.inference.loader import LoadedModel
from helpers.inference.predictor import Predictor
from helpers.monitoring.prediction_log import PredictionLog
from helpers.monitoring.watch import Watch, make_detector, make_monitor
from helpers.serving.service import create_app

LOG = "rehearsal.db"
KINDS = ("none", *CORRUPTIONS, "class_shift", "label_noise")
FEWEST = 200  # half of it comes before the change: enough for a verdict of "stable"
SHIFTED = 5  # superclasses that a class shift leaves more of
PATIENCE_S = 30.0


class RehearsalError(RuntimeError):
    """A service that does not answer as it must, in one sentence."""


@dataclass(frozen=True)
class Rehearsal:
    """What is sent, in order.

    Attributes:
        images: uint8 (n, 32, 32, 3).
        told: class indices, int (n,), that are sent as the truth; None where none are.
        change: number, from 1, of the first image that is changed.
        title: what changes there, for people.
    """

    kind: str
    severity: int
    images: np.ndarray
    told: np.ndarray | None
    change: int
    title: str


@dataclass(frozen=True)
class Outcome:
    """What the service said.

    Attributes:
        alarm: number, from 1, of the image at which its alarm rang; None if it did not.
        delay: changed images until then; None without an alarm, or with a false one, before the change.
        drift: the last report of ``/drift``; see `monitoring.drift.DriftReport`.
        accuracy: a report after each label; see `monitoring.accuracy.AccuracyReport`. Empty where none was told.
    """

    alarm: int | None
    delay: int | None
    drift: dict
    accuracy: tuple[dict, ...]

    def as_dict(self) -> dict:
        """As JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        if self.alarm is None:
            return "no alarm rang"
        after = f"after {self.delay} changed images" if self.delay else "before the change, which makes it a false one"
        return f"the alarm rang at image {self.alarm}, {after}"


def check_rehearsal(kind: str, severity: int, count: int) -> None:
    """Raises ValueError with a sentence, unless `plan_rehearsal` takes these."""
    if kind not in KINDS:
        raise ValueError(f"rehearsal must be one of {', '.join(KINDS)}, got {kind!r}")
    if severity not in range(1, 6):
        raise ValueError(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}")
    if kind != "none" and count < FEWEST:
        raise ValueError(f"rehearsal_images must be at least {FEWEST}, enough to see a change half-way, got {count}")


def plan_rehearsal(dataset: Dataset, kind: str, severity: int, count: int, seed: int = 0) -> Rehearsal:
    """`count` random test images of `dataset`, of which the latter half is changed.

    A corruption is that of `data.corruptions`. With a class shift, a share of `severity` fifths are images of five
    superclasses only; with label noise, a share of `severity` tenths of the labels told are wrong ones.

    Raises:
        ValueError: for what `check_rehearsal` refuses, and for the kind "none".
    """
    check_rehearsal(kind, severity, count)
    if kind == "none":
        raise ValueError("there is nothing to rehearse with rehearsal none; choose a corruption such as gaussian_noise")
    random, test, change = np.random.default_rng([seed, 1]), dataset.test, count // 2
    chosen = random.choice(len(test), count, replace=count > len(test))
    told, changed = None, np.arange(count) >= change
    title = f"{kind.replace('_', ' ')}, severity {severity}"
    if kind == "class_shift":
        groups = np.array(dataset.labels.superclass_of)[test.labels]
        few = np.flatnonzero(np.isin(groups, random.choice(len(dataset.labels.superclasses), SHIFTED, replace=False)))
        swapped = np.flatnonzero(changed & (random.random(count) < severity / 5))
        chosen[swapped] = random.choice(few, len(swapped), replace=len(swapped) > len(few))
        title = f"{severity / 5:.0%} of the images from {SHIFTED} of {len(dataset.labels.superclasses)} superclasses"
    images, truth = test.images[chosen], test.labels[chosen]
    if kind == "label_noise":
        wrong = changed & (random.random(count) < severity / 10)
        classes = len(dataset.labels.fine)
        told = np.where(wrong, (truth + random.integers(1, classes, count)) % classes, truth)
        title = f"{severity / 10:.0%} of the labels wrong"
    if kind in CORRUPTIONS:
        images = np.concatenate([images[:change], corrupt(images[change:], kind, severity, seed)])
    return Rehearsal(kind, severity, images, told, change + 1, title)


def rehearse(
    model: LoadedModel, plan: Rehearsal, directory: Path, progress: Callable[[], object] = lambda: None
) -> Outcome:
    """Serves `model` beside whatever else serves, sends it `plan`, and stops.

    Args:
        directory: gets the log `LOG`, with the images, in place of that of an earlier rehearsal.
        progress: called after each image.

    Raises:
        RehearsalError: if the service refuses an image or a label, or has no verdict.
    """
    path = Path(directory) / LOG
    for end in ("", "-wal", "-shm", "-accepted"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    with ExitStack() as stack:
        log = stack.enter_context(closing(PredictionLog(path, keep_images=True)))
        log.report("rehearsal", {"kind": plan.kind, "severity": plan.severity, "change": plan.change})
        predictor = stack.enter_context(closing(Predictor(model)))
        watch = Watch(make_detector, make_monitor)
        app = create_app(predictor, lambda model_dir: model, "", log=log, watch=watch, require_token=True)
        server = stack.enter_context(Server(app, port=0))
        return send(stack.enter_context(closing(Client(server.url))), plan, progress)


def send(client: Client, plan: Rehearsal, progress: Callable[[], object] = lambda: None) -> Outcome:
    """Sends the images of `plan` one by one, each followed by its label if it has one; returns what came of it.

    Args:
        client: of a service that keeps a log and has seen no image yet.

    Raises:
        RehearsalError: if the service refuses something, has no verdict, or has seen images before.
    """
    if (before := client.get("/drift")).status == 200 and before.body["images"]:
        raise RehearsalError(f"{client.url} has seen {before.body['images']} images; rehearse on a service of its own")
    accuracy, rang = [], None
    for number, image in enumerate(plan.images, 1):
        request = _accepted(client.predict(image))["request_id"]
        if plan.told is not None:
            report = _accepted(client.feedback(request, int(plan.told[number - 1])))["accuracy"]
            if report is None:
                raise RehearsalError(f"{client.url} follows no accuracy; serve a model with a drift reference")
            accuracy.append(report)
            rang = rang or (number if report["verdict"] == "fallen" else None)
        progress()
    drift = _await_verdict(client, len(plan.images))
    alarm = rang if plan.told is not None else drift["alarm"]
    delay = alarm - plan.change + 1 if alarm and alarm >= plan.change else None
    return Outcome(alarm, delay, drift, tuple(accuracy))


def _accepted(reply):
    if reply.status != 200:
        raise RehearsalError(f"the service refused what the rehearsal sent, with {reply.status}: {reply.body}")
    return reply.body


def _await_verdict(client, count):
    """The report of ``/drift`` on all images: they reach the detector a moment after their answers."""
    deadline = monotonic() + PATIENCE_S
    while (report := client.get("/drift")).status != 200 or report.body["images"] < count:
        if monotonic() > deadline:
            raise RehearsalError(f"the service has no verdict on {count} images after {PATIENCE_S:g} s: {report.body}")
        sleep(0.05)
    return report.body
