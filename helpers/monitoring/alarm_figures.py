"""Figures of what was monitored, over images and over time: arrays in, a matplotlib `Figure` out."""

from datetime import UTC, datetime

import numpy as np
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from helpers.figures import new_figure

BINS = 40  # of time
WINDOW = 20  # images


def mark_alarm(axes, change: int | None, alarm: int | None, named: bool = True) -> None:
    """Marks on `axes`, over image numbers, where a change came and where the alarm rang."""
    for image, style, label in ((change, "-", "change"), (alarm, ":", "alarm rang")):
        if image is not None:
            text = f"{label}, image {image}" if named else None
            axes.axvline(image, color="black", linewidth=1, linestyle=style, label=text)


def plot_alarm(
    surprise: np.ndarray,
    history: tuple[np.ndarray, np.ndarray],
    line: float,
    change: int | None,
    alarm: int | None,
    title: str,
) -> Figure:
    """How untypical each image is, and the strongest evidence so far, with the change and the alarm.

    Args:
        surprise: of each image, 1 on average for validation images.
        history, line: as `monitoring.drift.DriftDetector` gives them.
        change, alarm: numbers of images, from 1, or None.
    """
    figure, (above, below) = new_figure(11, 5, 2, 1, sharex=True)
    numbers, (images, capital) = np.arange(1, len(surprise) + 1), history
    above.plot(numbers, surprise, ".", color="C0", markersize=3, alpha=0.5, label="one image")
    if len(surprise) >= WINDOW:
        means = np.convolve(surprise, np.full(WINDOW, 1 / WINDOW), "valid")
        above.plot(numbers[WINDOW - 1 :], means, color="C0", label=f"mean of the last {WINDOW}")
    above.axhline(1, color="grey", linestyle="--", label="validation images")
    above.set(title=title, ylabel="surprise (nats)", ylim=(0, None))
    below.plot(images, capital.max(axis=1), color="C1", label="strongest bet")
    below.axhline(np.log10(line), color="C1", linestyle="--", label=f"alarm at {line:g}")
    below.set(xlabel="image", ylabel="log10 of the capital", ylim=(-1, max(2 * np.log10(line), 1)))
    mark_alarm(above, change, alarm, named=False)
    mark_alarm(below, change, alarm)
    figure.legend(loc="outside right upper")
    return figure


def plot_accuracy(labelled: np.ndarray, bounds: np.ndarray, card: float, change, alarm, title: str) -> Figure:
    """Running accuracy with its interval, rows (low, accuracy, high) of `bounds`, float (n, 3), 0 to 1.

    Args:
        labelled: numbers, int (n,), of the images whose truth was told.
        card: the accuracy that is tested against.
        change, alarm: numbers of images, or None.
    """
    figure, axes = new_figure(11, 3.2)
    low, accuracy, high = 100 * bounds.T
    axes.fill_between(labelled, low, high, color="C0", alpha=0.2, label="interval, 95 % at all times")
    axes.plot(labelled, accuracy, color="C0", label="accuracy so far")
    axes.axhline(100 * card, color="grey", linestyle="--", label=f"the card's, {card:.1%}")
    mark_alarm(axes, change, alarm)
    axes.set(title=title, xlabel="image", ylabel="right answers (%)", ylim=(0, 100))
    figure.legend(loc="outside right upper")
    return figure


def plot_effects(effects: dict[str, dict[str, float]], title: str) -> Figure:
    """Bars by score: mean ranks minus one half, -0.5 to 0.5, one series for each of `effects`."""
    names = list(next(iter(effects.values())))
    figure, axes = new_figure(11, 3.4)
    places, width = np.arange(len(names)), 0.8 / len(effects)
    for offset, (label, moves) in enumerate(effects.items()):
        axes.bar(places + (offset - (len(effects) - 1) / 2) * width, list(moves.values()), width, label=label)
    axes.axhline(0, color="grey", linewidth=1)
    axes.set_xticks(places, names)
    axes.set(title=title, xlabel="score", ylabel="mean rank minus one half", ylim=(-0.5, 0.5))
    figure.legend(loc="outside right upper")
    return figure


def plot_shares(names, shares: dict[str, np.ndarray], title: str) -> Figure:
    """Horizontal bars of the share, 0 to 1, of each of `names`, one series for each of `shares`."""
    figure, axes = new_figure(11, 0.3 * len(names) + 1)
    places, height = np.arange(len(names)), 0.8 / len(shares)
    for offset, (label, values) in enumerate(shares.items()):
        axes.barh(places + (offset - (len(shares) - 1) / 2) * height, 100 * values, height, label=label)
    axes.set_yticks(places, names)
    axes.set(title=title, xlabel="answers (%)", ylim=(len(names) - 0.5, -0.5))
    figure.legend(loc="outside right upper")
    return figure


def plot_hours(times: np.ndarray, surprise: np.ndarray, change: int | None, alarm: int | None, title: str) -> Figure:
    """How many images came when, and how untypical they were by hour of the day.

    Args:
        times: Unix seconds, float (n,), rising.
        surprise: of each image, 1 on average for validation images.
        change, alarm: numbers of images, from 1, or None.
    """
    figure, (left, right) = new_figure(11, 3.2, 1, 2)
    moments = [datetime.fromtimestamp(time, UTC) for time in times]
    left.hist(moments, bins=BINS, color="C0")
    for image, style, label in ((change, "-", "change"), (alarm, ":", "alarm rang")):
        if image is not None:
            left.axvline(moments[image - 1], color="black", linestyle=style, label=label)
    locator = AutoDateLocator(minticks=3, maxticks=6)
    left.xaxis.set_major_locator(locator)
    left.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    left.set(title="when they came", xlabel="time (UTC)", ylabel="images")
    hours = np.array([moment.hour for moment in moments])
    means = [surprise[hours == hour].mean() if (hours == hour).any() else 0 for hour in range(24)]
    right.bar(range(24), means, color="C1")
    right.axhline(1, color="grey", linestyle="--", label="validation images")
    right.set(title="how untypical they were", xlabel="hour of the day (UTC)", ylabel="mean surprise (nats)")
    right.set(xlim=(-0.6, 23.6), xticks=range(0, 24, 3))
    figure.suptitle(title)
    figure.legend(loc="outside right upper")
    return figure
