"""What to do next, from a diagnosis: a few sentences, each with its reason."""

from helpers.monitoring.diagnosis import Diagnosis

WORDS = {  # of a score that fell, and of one that rose
    "brightness": ("darker", "brighter"),
    "contrast": ("flatter in contrast", "harder in contrast"),
    "sharpness": ("more blurred", "sharper or noisier"),
    "saturation": ("paler in colour", "stronger in colour"),
}
CLEAR = 0.1  # of a mean rank, from one half
NEAR = 0.5  # of closeness
COSTLY = 0.05  # of accuracy
START = 20  # images: a change dated so early came with the version
ENOUGH = 100  # labels


def describe_change(diagnosis: Diagnosis) -> str:
    """How the pictures changed, in words; empty where they look as before."""
    moved = {name: diagnosis.effects.get(name, 0.0) for name in WORDS}
    clear = sorted((name for name in moved if abs(moved[name]) >= CLEAR), key=lambda name: -abs(moved[name]))
    return ", ".join(WORDS[name][moved[name] > 0] for name in clear)


def advise(diagnosis: Diagnosis) -> tuple[str, ...]:
    """What to do, most urgent first; at least one sentence, in Markdown."""
    if diagnosis.since is None:
        return (_rest(diagnosis),)
    rules = (_accuracy, _pictures, _classes, _labels) if diagnosis.since > START else (_start, _labels)
    return tuple(sentence for rule in rules if (sentence := rule(diagnosis)))


def _rest(diagnosis):
    if needed := diagnosis.drift.needed:
        return f"**Wait.** {needed} more images are needed before a clear change would surely have been seen."
    told = diagnosis.accuracy.labels
    more = "" if told else " Without true classes (`POST /feedback`) nothing is known of a change that cannot be seen."
    return f"**Nothing.** The images are of the same kind as the validation images.{more}"


def _start(diagnosis):
    if not diagnosis.stream.whole:
        return "**Look further back.** The change lies before these images: read more of the log (`latest`)."
    if before := diagnosis.stream.before:
        return (
            f"**Go back to version {before[-1]}** (`POST /rollback_model`): the change came with this version, not "
            "with the images. Then look at how this one was trained."
        )
    return (
        "**Check that this model belongs here.** The change was there from the first images on, so these may never "
        "have been of the kind that it was trained on."
    )


def _accuracy(diagnosis):
    if diagnosis.fell is None:
        return ""
    told = diagnosis.accuracy_since.labels
    return (
        f"**Retrain, with the {told} labelled images since then among the data**, if the labels are right: look "
        "at some of them first. Wrong labels look the same from here."
    )


def _pictures(diagnosis):
    nearest = next((found for found in diagnosis.resembles if found.closeness >= NEAR), None)
    change = describe_change(diagnosis)
    if not change and not nearest:
        return ""
    likeness = f", most like {nearest.corruption} at severity {nearest.severity}" if nearest else ""
    source = f"**Check the camera, the lens and what decodes or scales the pictures:** they are {change or 'changed'}"
    if nearest is None:
        return f"{source}."
    points = f"cost {100 * nearest.loss:.0f} points of accuracy on validation images"
    if nearest.loss < COSTLY:
        return f"{source}{likeness}. That {points}: no reason to change the model."
    return f"{source}{likeness}. That {points}; if the pictures stay so, retrain with such pictures among the data."


def _classes(diagnosis):
    if not diagnosis.drift.grew or (describe_change(diagnosis) and diagnosis.resembles):
        return ""  # a model that sees badly answers other classes, too
    grew = ", ".join(diagnosis.drift.grew)
    return (
        f"**Ask whether more pictures of {grew} are to be expected.** If so the model can stay, "
        "and needs a reference of the new mix; retrain if these classes are among its weak ones."
    )


def _labels(diagnosis):
    told, count = diagnosis.accuracy_since.labels, len(diagnosis.stream) - diagnosis.since + 1
    if diagnosis.fell is not None or told >= ENOUGH:
        return ""
    return (
        f"**Collect labels:** of the {count} images since the change the truth is known for {told}. "
        f"{ENOUGH} of them, chosen at random and sent to `POST /feedback`, tell whether accuracy fell."
    )
