import numpy as np
import pytest

from helpers.data.image_statistics import describe_images


def test_the_statistics_are_those_of_their_definitions():
    images = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)
    found = describe_images(images)
    pixels = images / 255
    grey = pixels.mean(axis=3)
    edges = 4 * grey[:, 1:-1, 1:-1] - grey[:, :-2, 1:-1] - grey[:, 2:, 1:-1] - grey[:, 1:-1, :-2] - grey[:, 1:-1, 2:]
    expected = {
        "brightness": grey.mean(axis=(1, 2)),
        "contrast": grey.std(axis=(1, 2)),
        "sharpness": np.abs(edges).mean(axis=(1, 2)),
        "saturation": (pixels.max(axis=3) - pixels.min(axis=3)).mean(axis=(1, 2)),
    }
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], values, rtol=1e-4)


@pytest.mark.parametrize(("value", "brightness"), [(0, 0), (255, 1)])
def test_a_plain_picture_has_brightness_and_nothing_else(value, brightness):
    found = describe_images(np.full((1, 32, 32, 3), value, np.uint8))
    assert {name: float(values[0]) for name, values in found.items()} == {
        "brightness": brightness,
        "contrast": 0,
        "sharpness": 0,
        "saturation": 0,
    }
