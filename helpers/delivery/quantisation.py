"""How a network's convolutions become 8-bit: ranges found when it was published, in its bundle's quantisation.json."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from helpers.delivery.manifest import BundleError, first_problem

Share = Annotated[float, Field(ge=0, le=1)]
Change = Annotated[float, Field(ge=-1, le=1)]


class Quantisation(BaseModel):
    """The ranges, and what 8 bits cost on validation images.

    Attributes:
        ranges: by convolution, e.g. "block3_conv2": its inputs, 0 to this, are rounded to 256 levels.
        calibration_images: training images that the ranges are from.
        validation_images: images that both networks were compared on.
        float_top1, int8_top1: on these, 0 to 1.
        difference, interval: int8 minus float on the same images, with its bootstrap 95 % interval.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    ranges: Annotated[dict[str, Annotated[float, Field(gt=0, le=1e6)]], Field(min_length=1)]
    calibration_images: Annotated[int, Field(ge=1)]
    validation_images: Annotated[int, Field(ge=1)]
    float_top1: Share
    int8_top1: Share
    difference: Change
    interval: tuple[Change, Change]


def read_quantisation(path: Path) -> Quantisation:
    """What the file at `path` says.

    Raises:
        BundleError: if it is not what this suite writes.
    """
    try:
        return Quantisation.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BundleError(f"{path} does not hold the ranges of an 8-bit network: {first_problem(error)}") from error
