"""Whether a new model may take the place of the one in production."""

from dataclasses import asdict, dataclass

import numpy as np

from helpers.training.evaluation import Evaluation, paired_difference


@dataclass(frozen=True)
class Decision:
    """The gate's answer.

    Attributes:
        passed: whether the candidate may be promoted.
        reason: one sentence.
        floor, tolerance: what was asked for, 0 to 1.
        champion: version compared with, None if there was none.
        difference, interval: top-1 of candidate minus champion on the same images, with its bootstrap 95 % interval.
        regressions: superclasses that lost more than `tolerance`, with the difference of their top-1.
    """

    passed: bool
    reason: str
    floor: float
    tolerance: float
    champion: str | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    regressions: dict[str, float] | None = None

    def as_dict(self) -> dict:
        """As JSON values."""
        return asdict(self)


def decide(
    candidate: Evaluation,
    candidate_correct: np.ndarray,
    *,
    floor: float,
    tolerance: float = 0.01,
    champion: str | None = None,
    champion_evaluation: Evaluation | None = None,
    champion_correct: np.ndarray | None = None,
) -> Decision:
    """Passes a candidate that reaches `floor` and is not worse than the champion on the same images.

    A test of non-inferiority: the 95 % interval of the difference, by paired bootstrap, must lie above -`tolerance` as
    a whole. Too few images to tell are a refusal, not a pass.

    Args:
        candidate, champion_evaluation: of the same images.
        candidate_correct, champion_correct: bool (n,), whether each image was classified rightly, in the same order.
        floor: top-1 that a model must reach in any case, 0 to 1.
        tolerance: largest loss of top-1 that is accepted, 0 to 1; 0 demands a gain.
        champion: version in production, None if there is none to compare with.
    """
    for name, value in (("floor", floor), ("tolerance", tolerance)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {value}")
    if not candidate.top1 >= floor:
        return Decision(
            False, f"top-1 {candidate.top1:.4f} is below the floor of {floor:.4f}", floor, tolerance, champion
        )
    if champion is None:
        return Decision(
            True, f"top-1 {candidate.top1:.4f} reaches the floor of {floor:.4f}; no champion yet", floor, tolerance
        )
    difference, low, high = paired_difference(candidate_correct, champion_correct)
    before = champion_evaluation.per_superclass
    changes = {name: candidate.per_superclass[name] - before[name] for name in before}
    passed = low > -tolerance
    verdict = "is not below" if passed else "is below" if difference < -tolerance else "may be below"
    return Decision(
        passed,
        f"top-1 {candidate.top1:.4f} {verdict} the champion's by more than {tolerance:.4f}: "
        f"difference {difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}",
        floor,
        tolerance,
        champion,
        difference,
        (low, high),
        {name: change for name, change in sorted(changes.items(), key=lambda item: item[1]) if change < -tolerance},
    )
