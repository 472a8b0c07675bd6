"""Makes the drift reference of a model from validation images, through the engine that will serve."""

import numpy as np

from helpers.data.corruptions import CORRUPTIONS, corrupt
from helpers.data.dataset import Split, choose_per_class
from helpers.data.labels import Labels
from helpers.inference.engine import KerasEngine, OpenVinoEngine, Scores, run_batches
from helpers.monitoring.drift_reference import SEVERITIES, Reference, cut_ranks, order_classes
from helpers.monitoring.likeness import learn_likeness
from helpers.monitoring.martingale import break_ties
from helpers.monitoring.scores import NAMES, score_images
from helpers.training.evaluation import reliability, softmax

LEARNED = 0.2  # share of the validation images that the likeness is learned on, and not compared with


def make_reference(
    engine: OpenVinoEngine | KerasEngine,
    validation: Split,
    training: Split,
    labels: Labels,
    temperature: float,
    *,
    corrupted: int = 300,
    seed: int = 0,
) -> Reference:
    """The reference of `validation`, at least 125 images that the model was not trained on and will not be served.

    A fifth of them, at random, tells what corruptions look like; the others are what served images are compared with.

    Args:
        engine: runs the network, with or without the temperature, in the precision that will serve. Another one is no
            drift: 8 bits move the mean of no score by more than 0.002 standard deviations, and what 4,000 images of a
            reference can tell, however long the stream, is 0.07.
        training: up to 20 images of each class give the class means.
        corrupted: images, of that fifth, that each corruption is tried on, at each severity.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(validation))
    learned, kept = np.split(order, [int(LEARNED * len(order))])
    ranks = cut_ranks(len(kept))
    chosen = training.take(choose_per_class(training.labels, 20, seed))
    features = run_batches(engine, chosen.images).features
    class_means = np.zeros((len(labels.fine), features.shape[1]), np.float32)
    np.add.at(class_means, chosen.labels, features)
    class_means /= np.maximum(np.bincount(chosen.labels, minlength=len(class_means)), 1)[:, None]

    def look(split):
        found = run_batches(engine, split.images)
        found = Scores(softmax(found.logits / temperature, axis=1), found.logits, found.features)
        return found, score_images(split.images, found, class_means, order_classes(labels))

    found, rows = look(validation)
    right = found.logits.argmax(axis=1) == validation.labels
    sample, changed = validation.take(learned[:corrupted]), []
    ranked = np.sort(rows[kept], axis=0)
    moves = np.empty((len(CORRUPTIONS), len(SEVERITIES), len(NAMES)), np.float32)
    losses = np.empty(moves.shape[:2], np.float32)
    for row, name in enumerate(CORRUPTIONS):
        for column, severity in enumerate(SEVERITIES):
            answers, scored = look(Split(corrupt(sample.images, name, severity, seed), sample.labels))
            wrong = answers.logits.argmax(axis=1) != sample.labels
            losses[row, column] = right[learned[:corrupted]].mean() - 1 + wrong.mean()
            places = [np.searchsorted(*pair) for pair in zip(ranked.T, scored.T, strict=True)]
            moves[row, column] = np.mean(places, axis=1) / len(kept)
            changed.append(scored)
    severities = len(SEVERITIES)
    groups = [np.concatenate(changed[start : start + severities]) for start in range(0, len(changed), severities)]
    likeness = learn_likeness(rows[learned], groups)
    tests = np.concatenate([rows[kept], likeness.score(rows[kept])], axis=1)
    ranked = np.sort(break_ties(tests, random), axis=0)
    return Reference(
        labels=labels,
        temperature=float(temperature),
        count=len(kept),
        edges=np.stack([ranked[rank - 1, index] for index, rank in enumerate(ranks)]),
        cuts=likeness.cuts,
        weights=likeness.weights,
        class_means=class_means,
        class_counts=np.bincount(found.logits[kept].argmax(axis=1), minlength=len(labels.fine)),
        accuracy=float(right[kept].mean()),
        calibration=reliability(found.probabilities[kept], validation.labels[kept]),
        moves=moves,
        losses=losses,
    )
