"""What a prediction log tells after an alarm: when, what changed and how far, and what it resembles."""

from dataclasses import asdict, dataclass

import numpy as np

from helpers.data.corruptions import CORRUPTIONS
from helpers.monitoring.accuracy import AccuracyMonitor, AccuracyReport
from helpers.monitoring.drift import DriftDetector, DriftReport
from helpers.monitoring.drift_reference import SEVERITIES, Reference
from helpers.monitoring.martingale import break_ties
from helpers.monitoring.scores import NAMES
from helpers.monitoring.stream import UNKNOWN, Stream


@dataclass(frozen=True)
class Resemblance:
    """How near a known corruption is.

    Attributes:
        closeness: 1 where it moves every score as far as the drift does, 0 where no change at all is as near.
        loss: accuracy that it cost on validation images, 0 to 1.
        moves: by score, mean rank minus one half.
    """

    corruption: str
    severity: int
    closeness: float
    loss: float
    moves: dict[str, float]


@dataclass(frozen=True)
class Diagnosis:
    """What became of a `stream`, judged anew, from its first image on, as the server judged it.

    Attributes:
        drift: the detector's report at its end.
        history, line: see `DriftDetector.history` and `DriftDetector.line`.
        accuracy: over all of it; `accuracy_before` and `accuracy_since` of the parts, None where there are none.
        fell: number, from 1, of the image whose label proved that accuracy fell below the card's; None if none did.
        since: number of the first image after the change: the detector's, or else where the labels that prove the
            fall are most likely to have changed; None without an alarm.
        surprise: float64 (n,): how untypical each image is, 1 on average for validation images. It is the mean of
            -log(2 min(u, 1 - u)) over the scores but the class, u being its rank (Fisher's way to combine tests).
        effects: mean rank among the reference minus one half, -0.5 to 0.5, by score, since the change; of all images
            without one.
        resembles: the three nearest of the corruptions that are nearer than no change, nearest first.
    """

    stream: Stream
    drift: DriftReport
    history: tuple[np.ndarray, np.ndarray]
    line: float
    accuracy: AccuracyReport
    accuracy_before: AccuracyReport | None
    accuracy_since: AccuracyReport | None
    fell: int | None
    since: int | None
    surprise: np.ndarray
    effects: dict[str, float]
    resembles: tuple[Resemblance, ...]

    @property
    def alarm(self) -> int | None:
        """Number of the image at which the first alarm rang."""
        return min((image for image in (self.drift.alarm, self.fell) if image is not None), default=None)

    @property
    def verdict(self) -> str:
        """The detector's, with what the labels say."""
        return self.drift.verdict + ", and accuracy fell" * (self.fell is not None)

    @property
    def answered(self) -> dict[str, np.ndarray]:
        """Class indices, int (m,), answered before the change (or at all, without one) and since."""
        cut = len(self.stream) if self.since is None else self.since - 1
        return {"before": self.stream.answers[:cut], "since": self.stream.answers[cut:]}

    def as_dict(self) -> dict:
        """As JSON values, without what the log itself holds."""
        reports = {name: getattr(self, name) for name in ("accuracy", "accuracy_before", "accuracy_since")}
        found = {name: report.as_dict() if report else None for name, report in reports.items()}
        found |= {"log": str(self.stream.log), "version": self.stream.version, "images": len(self.stream)}
        found |= {name: getattr(self, name) for name in ("verdict", "since", "alarm", "fell", "effects")}
        return found | {"drift": self.drift.as_dict(), "resembles": [asdict(item) for item in self.resembles]}


def diagnose(stream: Stream, reference: Reference, card: float) -> Diagnosis:
    """Judges `stream` by the `reference` and the `card` (see `AccuracyMonitor`) of the model that answered."""
    detector = DriftDetector(reference)
    detector.update_rows(stream.scores, stream.answers)
    drift = detector.report()
    accuracy, fell = _follow(stream, reference, card)
    since = drift.since or (_split(stream) if fell else None)
    cut = len(stream) if since is None else since - 1
    ranks = _rank(stream.scores, reference)
    moved = ranks if since is None else ranks[cut:]
    effects = dict(zip(NAMES, (moved.mean(axis=0) - 0.5).tolist(), strict=True))
    tails = 2 * np.minimum(ranks, 1 - ranks)[:, 1:]  # the order of classes means nothing
    return Diagnosis(
        stream=stream,
        drift=drift,
        history=detector.history(),
        line=detector.line,
        accuracy=accuracy.report(),
        accuracy_before=_account(stream, reference, card, slice(0, cut)),
        accuracy_since=_account(stream, reference, card, slice(cut, None)),
        fell=fell,
        since=since,
        surprise=-np.log(tails).mean(axis=1),
        effects=effects,
        resembles=_nearest(reference, effects) if drift.verdict == "drift" else (),
    )


def _follow(stream, reference, card):
    """The monitor after all of `stream`, and the number of the image whose label let it ring."""
    monitor, fell = AccuracyMonitor(reference, card), None
    monitor.predicted(stream.confidences)
    for number, (answer, label, confidence) in enumerate(_rows(stream), 1):
        if label != UNKNOWN:
            monitor.labelled(answer == label, confidence)
            if fell is None and monitor.report().verdict == "fallen":
                fell = number
    return monitor, fell


def _account(stream, reference, card, part):
    monitor, rows = AccuracyMonitor(reference, card), _rows(stream)[part]
    monitor.predicted(stream.confidences[part])
    for answer, label, confidence in rows:
        if label != UNKNOWN:
            monitor.labelled(answer == label, confidence)
    return monitor.report() if rows else None


def _rows(stream):
    return list(zip(stream.answers.tolist(), stream.labels.tolist(), stream.confidences.tolist(), strict=True))


def _split(stream):
    """Number of the image after which right answers most likely became rarer (Hinkley & Hinkley 1970, Biometrika)."""
    places = np.flatnonzero(stream.labels != UNKNOWN)
    right = (stream.answers == stream.labels)[places]
    counts, before = np.arange(1, len(right)), np.cumsum(right)[:-1]
    after = right.sum() - before
    gain = _likelihood(before, counts) + _likelihood(after, len(right) - counts)
    gain[before / counts <= after / (len(right) - counts)] = -np.inf
    return int(places[np.argmax(gain) + 1]) + 1 if np.isfinite(gain).any() else 1


def _likelihood(right, count):
    share = np.clip(right / count, 1e-9, 1 - 1e-9)
    return right * np.log(share) + (count - right) * np.log1p(-share)


def _rank(scores, reference):
    """Ranks among the reference, 0 to 1, float64 (n, scores): of each score's bin the middle."""
    count, random = len(NAMES), np.random.default_rng(0)
    gaps, keys = reference.gaps[:count], break_ties(scores, random)
    middles = (np.cumsum(gaps, axis=1) - gaps / 2) / (reference.count + 1)
    columns = zip(middles, reference.edges[:count], keys.T, strict=True)
    return np.stack([middle[np.searchsorted(edges, key)] for middle, edges, key in columns], axis=1)


def _nearest(reference, effects, count=3):
    """Corruptions by distance of their effects, each at its nearest severity."""
    found = np.array(list(effects.values()))
    known, length = reference.moves - 0.5, np.linalg.norm(found[1:])
    distances = np.linalg.norm(known[:, :, 1:] - found[1:], axis=2)
    best = []
    for row in np.argsort(distances.min(axis=1))[:count]:
        column = int(distances[row].argmin())
        closeness = 1 - float(distances[row, column] / length)
        if closeness > 0:
            moves = dict(zip(NAMES, known[row, column].tolist(), strict=True))
            loss = float(reference.losses[row, column])
            best.append(Resemblance(CORRUPTIONS[row], SEVERITIES[column], closeness, loss, moves))
    return tuple(best)
