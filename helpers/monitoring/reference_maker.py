"""Makes the drift reference of a model from validation images, through the engine that will serve."""

import numpy as np

from helpers.data.corruptions import CORRUPTIONS, corrupt
from helpers.data.dataset import Split, choose_per_class
from helpers.data.labels import Labels
from helpers.inference.engine import KerasEngine, OpenVinoEngine, Scores, run_batches
from helpers.monitoring.drift_reference import SEVERITIES, Reference, cut_ranks, order_classes
from helpers.monitoring.martingale import break_ties
from helpers.monitoring.scores import NAMES, score_images
from helpers.training.evaluation import reliability, softmax


def make_reference(
    engine: OpenVinoEngine | KerasEngine,
    validation: Split,
    training: Split,
    labels: Labels,
    temperature: float,
    *,
    corrupted_per_class: int = 1,
    seed: int = 0,
) -> Reference:
    """The reference of `validation`, at least 100 images that the model was not trained on and will not be served.

    Args:
        engine: runs the network, with or without the temperature.
        training: up to 20 images of each class give the class means.
        corrupted_per_class: validation images of each class that each corruption is tried on, at each severity.
    """
    chosen = training.take(choose_per_class(training.labels, 20, seed))
    features = run_batches(engine, chosen.images).features
    class_means = np.zeros((len(labels.fine), features.shape[1]), np.float32)
    np.add.at(class_means, chosen.labels, features)
    class_means /= np.maximum(np.bincount(chosen.labels, minlength=len(class_means)), 1)[:, None]

    def look(split):
        found = run_batches(engine, split.images)
        found = Scores(softmax(found.logits / temperature, axis=1), found.logits, found.features)
        scored = score_images(split.images, found, class_means, order_classes(labels))
        return found, np.stack([scored[name] for name in NAMES], axis=1)

    found, rows = look(validation)
    ranked = np.sort(break_ties(rows, np.random.default_rng(seed)), axis=0)
    ranks = cut_ranks(len(validation))
    sample = validation.take(choose_per_class(validation.labels, corrupted_per_class, seed))
    clean = np.mean(look(sample)[0].logits.argmax(axis=1) == sample.labels)
    moves = np.empty((len(CORRUPTIONS), len(SEVERITIES), len(NAMES)), np.float32)
    losses = np.empty(moves.shape[:2], np.float32)
    for row, name in enumerate(CORRUPTIONS):
        for column, severity in enumerate(SEVERITIES):
            changed = Split(corrupt(sample.images, name, severity, seed), sample.labels)
            answers, scored = look(changed)
            losses[row, column] = clean - np.mean(answers.logits.argmax(axis=1) == sample.labels)
            for index in range(len(NAMES)):
                places = np.searchsorted(ranked[:, index], scored[:, index])
                moves[row, column, index] = places.mean() / len(validation)
    answers = found.logits.argmax(axis=1)
    return Reference(
        labels=labels,
        temperature=float(temperature),
        count=len(validation),
        edges=np.stack([ranked[rank - 1, index] for index, rank in enumerate(ranks)]),
        class_means=class_means,
        class_counts=np.bincount(answers, minlength=len(labels.fine)),
        accuracy=float(np.mean(answers == validation.labels)),
        calibration=reliability(found.probabilities, validation.labels),
        moves=moves,
        losses=losses,
    )
