"""Arrays in, a matplotlib `Figure` out. Every figure has a title, labelled axes, and names the data it shows."""

from itertools import count

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from helpers.data.labels import Labels
from helpers.monitoring.drift_reference import TESTS
from helpers.monitoring.scores import NAMES

CHANNELS = ("red", "green", "blue")


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options):
    """A figure of that size in inches with its axes, in the style of all figures."""
    with sns.axes_style("whitegrid"):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, **options)


def plot_counts(names, counts: dict[str, tuple[int, ...]], title: str) -> Figure:
    """Bars of the number of images for each of `names`, one series for each split in `counts`."""
    few = len(names) <= 25
    figure, axes = new_figure(11, 0.28 * len(names) + 1 if few else 3.5)
    places, width = np.arange(len(names)), 0.8 / len(counts)
    for offset, (split, values) in enumerate(counts.items()):
        beside = places + (offset - (len(counts) - 1) / 2) * width
        (axes.barh if few else axes.bar)(beside, values, width, label=split, linewidth=0)
    if few:
        axes.set_yticks(places, names)
        axes.set(xlabel="images", ylim=(len(names) - 0.4, -0.6))
    else:
        axes.set(xlabel="class index", ylabel="images", xlim=(-1, len(names)))
    axes.set_title(title)
    figure.legend(title="split", loc="outside right upper")
    return figure


def plot_samples(images: np.ndarray, names, title: str, columns: int = 10, notes=None) -> Figure:
    """A grid of `images`, uint8 (n, height, width, 3), each under its name and, if given, its line of `notes`."""
    rows = -(-len(images) // columns)
    figure, axes = new_figure(
        1.25 * columns, (1.35 if notes is None else 1.6) * rows + 0.4, rows, columns, squeeze=False
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for index, (axis, image, name) in enumerate(zip(axes.flat, images, names, strict=False)):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(name if notes is None else f"{name}\n{notes[index]}", fontsize=6.5)
    figure.suptitle(title)
    return figure


def plot_pixels(histograms: dict[str, np.ndarray], title: str) -> Figure:
    """Share of each pixel value by channel, from int (3, 256) histograms, one panel for each split."""
    figure, axes = new_figure(11, 3.2, 1, len(histograms), sharey=True, squeeze=False)
    for axis, (split, histogram) in zip(axes.flat, histograms.items(), strict=True):
        for channel, name in enumerate(CHANNELS):
            axis.plot(histogram[channel] / histogram[channel].sum(), color=name, label=name, linewidth=1)
        axis.set(title=split, xlabel="pixel value (0 to 255)", ylabel="share of pixels", ylim=(0, None))
    axes.flat[0].legend(title="channel")
    figure.suptitle(title)
    return figure


def plot_training(results, title: str) -> Figure:
    """Loss and accuracies by epoch, from `training.loop.EpochResult` objects."""
    figure, (left, right) = new_figure(11, 3.4, 1, 2)
    epochs = [result.epoch for result in results]
    left.plot(epochs, [result.loss for result in results], marker="o")
    left.set(title="loss on augmented training images", xlabel="epoch", ylabel="cross-entropy (nats)")
    left.set_ylim(bottom=0)
    for name, label in (("accuracy", "training, augmented"), ("validation_accuracy", "validation")):
        right.plot(epochs, [100 * getattr(result, name) for result in results], marker="o", label=label)
    right.set(title="accuracy", xlabel="epoch", ylabel="top-1 (%)", ylim=(0, 100))
    right.legend()
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    figure.suptitle(title)
    return figure


def plot_group_accuracy(accuracy: dict[str, float], title: str) -> Figure:
    """Horizontal bars of the top-1 of each group, best first, with a line at their mean."""
    ordered = sorted(accuracy.items(), key=lambda item: -item[1])
    figure, axes = new_figure(9, 0.27 * len(ordered) + 1)
    sns.barplot(x=[100 * value for _, value in ordered], y=[name for name, _ in ordered], ax=axes, color="C0")
    mean = 100 * float(np.mean(list(accuracy.values())))
    axes.axvline(mean, color="C1", linestyle="--", label=f"mean {mean:.1f} %")
    axes.set(title=title, xlabel="top-1 (%)", ylabel="", xlim=(0, 100))
    axes.legend()
    return figure


def plot_confusion(matrix: np.ndarray, labels: Labels, title: str) -> Figure:
    """Shares of the answers that name another superclass, from the class confusion matrix, int (classes, classes).

    The diagonal is left out: right answers are many times as many, and beside them no wrong ones can be seen.
    """
    groups, count = np.array(labels.superclass_of), len(labels.superclasses)
    summed = np.zeros((count, count))
    np.add.at(summed, (groups[:, None], groups[None, :]), matrix)
    figure, axes = new_figure(9, 7.5)
    shares = 100 * summed / np.maximum(summed.sum(axis=1, keepdims=True), 1)
    shown = {"mask": np.eye(count, dtype=bool), "cmap": "mako_r", "vmin": 0, "square": True}
    sns.heatmap(shares, ax=axes, cbar_kws={"label": "% of the true superclass"}, **shown)
    axes.set_facecolor("lightgrey")
    axes.grid(False)
    axes.set_xticks(np.arange(count) + 0.5, labels.superclasses, rotation=90)
    axes.set_yticks(np.arange(count) + 0.5, labels.superclasses, rotation=0)
    axes.set(title=title, xlabel="superclass of the answer", ylabel="true superclass")
    return figure


def plot_reliability(before: np.ndarray, after: np.ndarray, title: str) -> Figure:
    """Accuracy against confidence without and with the temperature, from rows of `training.evaluation.reliability`."""
    figure, axes = new_figure(5.5, 4.5)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect calibration")
    for rows, label in ((before, "as trained"), (after, "with temperature")):
        count, confidence, accuracy = rows.T
        axes.plot(confidence[count > 0], accuracy[count > 0], marker="o", label=label)
    axes.set(title=title, xlabel="mean confidence (0 to 1)", ylabel="accuracy (0 to 1)", xlim=(0, 1), ylim=(0, 1))
    axes.legend()
    return figure


def plot_metrics(rows: list[dict[str, float]], title: str) -> Figure:
    """One panel for each running metric over the predictions, from the dicts that monitoring keeps."""
    names = list(rows[0])
    figure, axes = new_figure(11, 5.6, 2, 3)
    for axis, name in zip(axes.flat, names, strict=False):
        seconds = name.endswith("Time")
        axis.plot([row[name] * (1000 if seconds else 1) for row in rows], linewidth=1)
        axis.set(title=name, xlabel="prediction", ylabel="milliseconds" if seconds else "class index")
        axis.set_ylim(bottom=0)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    figure.suptitle(title)
    return figure


def plot_capital(images: np.ndarray, capital: np.ndarray, line: float, alarm: int | None, title: str) -> Figure:
    """Capital of the bets against each drift score, with the line of the alarm and, if it rang, where.

    Of the likenesses to known corruptions only those that reached the line have colour and name, and are dashed.

    Args:
        images, capital: as `monitoring.drift.DriftDetector.history` gives them, the capital as log10.
        line: capital at which the alarm rings.
        alarm: number of that image.
    """
    figure, axes = new_figure(11, 4)
    solid, dashed, others = count(), count(), iter(["like another corruption"])
    for values, name in zip(capital.T, TESTS, strict=True):
        if name in NAMES:
            axes.plot(images, values, f"C{next(solid)}", label=name, linewidth=1.2)
        elif values.max() >= np.log10(line):
            axes.plot(images, values, f"C{next(dashed) % 10}--", label=name, linewidth=1.2)
        else:
            axes.plot(images, values, color="lightgrey", label=next(others, None), linewidth=0.8, zorder=1)
    axes.axhline(np.log10(line), color="black", linestyle="--", label=f"alarm at {line:g}")
    if alarm is not None:
        axes.axvline(alarm, color="black", linestyle=":", label=f"alarm rang, image {alarm}")
    top = max(2 * np.log10(line), 1)  # a lost bet or a won one far beyond the line says no more
    axes.set(title=title, xlabel="image", ylabel="log10 of the capital", ylim=(-1.5, top))
    figure.legend(loc="outside right upper")
    return figure
