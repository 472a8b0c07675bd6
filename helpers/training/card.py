"""The model card: what a person should know before using a model (Mitchell et al. 2019, "Model Cards")."""

from helpers.training.evaluation import Evaluation


def write_card(
    *,
    name: str,
    data: dict,
    evaluation: Evaluation,
    config: dict,
    training: dict[str, object],
    start: str,
    hardware: str,
) -> str:
    """The card as Markdown.

    Args:
        name: of the model.
        data: provenance: source, fingerprint, synthetic.
        evaluation: of the last epoch on the test split.
        config: of the network.
        training: recipe and what it came to, shown as a table.
        start: where the weights came from before training.
        hardware: that it was trained on.
    """
    warning = (
        "> **Trained on the drawn stand-in, not on CIFAR-100.** It shows that the suite works, and nothing more.\n\n"
        if data["synthetic"]
        else ""
    )
    low, high = evaluation.top1_interval
    rows = "\n".join(f"| {key} | {value} |" for key, value in training.items())
    worst = sorted(evaluation.per_superclass.items(), key=lambda item: item[1])[:3]
    return f"""# {name}

{warning}VGG16 (13 convolutions, 3 dense layers, batch-normalised, width {config["width"]:g}) for 32x32 colour images of
{config["num_classes"]} classes.

## Test accuracy of the last epoch

| measure | value |
|---|---|
| images | {evaluation.samples:,} |
| top-1 | {evaluation.top1:.2%} (95 % interval {low:.2%} to {high:.2%}) |
| top-5 | {evaluation.top5:.2%} |
| superclass | {evaluation.superclass_top1:.2%} |
| negative log-likelihood | {evaluation.nll:.4f} nats |
| expected calibration error | {evaluation.calibration_error:.2%} |
| the same before temperature | {evaluation.calibration_error_raw:.2%} |

## Data

{data["source"]}; content fingerprint `{data["fingerprint"]}`.

## Training

Started from: {start}. Hardware: {hardware}. Nothing was chosen by the test split.

| parameter or result | value |
|---|---|
{rows}

## Limits

- It always answers with one of its classes, whatever the image shows; it was made for small, centred objects.
- Weakest superclasses: {", ".join(f"{group} ({value:.0%})" for group, value in worst)}.
- Confidence is calibrated on images like the validation split only.
"""
