"""The retina equals a naive crop, image by image."""

import numpy as np
import pytest
import torch

from modules import Retina


def naive_glimpse(image: np.ndarray, location: np.ndarray, patch_size: int, num_patches: int, scale: int) -> np.ndarray:
    """One image (C, H, W), one location (x, y): crop pixel by pixel, then average blocks."""
    channels, height, width = image.shape
    one, two = np.float32(1), np.float32(2)
    column = int(np.floor((location[0] + one) / two * np.float32(width)))
    row = int(np.floor((location[1] + one) / two * np.float32(height)))
    patches = []
    for i in range(num_patches):
        cell = scale**i
        size = patch_size * cell
        crop = np.zeros((channels, size, size))
        for y in range(size):
            for x in range(size):
                source_y, source_x = row - size // 2 + y, column - size // 2 + x
                if 0 <= source_y < height and 0 <= source_x < width:
                    crop[:, y, x] = image[:, source_y, source_x]
        patches.append(crop.reshape(channels, patch_size, cell, patch_size, cell).mean(axis=(2, 4)))
    return np.stack(patches).reshape(-1)


BORDERS = [(-1, -1), (1, 1), (1, -1), (-1, 1), (0, 0), (0.999, -0.999), (-1.4, 0.2), (0.3, 1.7), (3, -3)]


@pytest.mark.parametrize("channels, height, width", [(1, 28, 28), (3, 17, 30), (2, 9, 5), (1, 1, 1)])
@pytest.mark.parametrize("num_patches", [1, 2, 3, 4])
@pytest.mark.parametrize("patch_size, scale", [(8, 2), (5, 2), (1, 3), (4, 1), (3, 3)])
def test_equals_a_naive_crop(channels, height, width, num_patches, patch_size, scale, generator):
    locations = torch.cat([torch.tensor(BORDERS), torch.rand(7, 2, generator=generator) * 2.4 - 1.2])
    images = torch.randint(0, 256, (len(locations), channels, height, width), generator=generator).float()
    glimpses = Retina(patch_size, num_patches, scale)(images, locations)
    assert glimpses.shape == (len(locations), num_patches * channels * patch_size**2)
    assert glimpses.dtype == torch.float32
    expected = np.stack(
        [
            naive_glimpse(*pair, patch_size, num_patches, scale)
            for pair in zip(images.numpy(), locations.numpy(), strict=True)
        ]
    )
    # Sums of whole numbers are exact, so nothing but the last division rounds: equal to the last bit.
    np.testing.assert_array_equal(glimpses.numpy(), expected.astype(np.float32))


def test_is_exact_to_float32_rounding_for_real_values_in_a_large_image(generator):
    images = torch.randn(2, 1, 400, 380, generator=generator) + 3
    locations = torch.rand(2, 2, generator=generator) * 2 - 1
    glimpses = Retina(12, 4, 2)(images, locations)
    expected = [
        naive_glimpse(image, place, 12, 4, 2) for image, place in zip(images.numpy(), locations.numpy(), strict=True)
    ]
    np.testing.assert_allclose(glimpses.numpy(), np.stack(expected), rtol=1e-6, atol=1e-6)


def test_a_batch_of_one_sees_what_it_sees_in_a_batch(generator):
    images = torch.randn(5, 3, 20, 24, generator=generator)
    locations = torch.rand(5, 2, generator=generator) * 2 - 1
    retina = Retina(6, 3, 2)
    together = retina(images, locations)
    for i in range(5):
        assert torch.equal(retina(images[i : i + 1], locations[i : i + 1])[0], together[i])


def test_x_is_the_column_and_y_the_row():
    image = torch.zeros(1, 1, 10, 20)
    image[0, 0, 2, 15] = 1  # row 2 of 10, column 15 of 20
    centre = torch.tensor([[2 * 15.5 / 20 - 1, 2 * 2.5 / 10 - 1]])
    assert Retina(1, 1, 1)(image, centre).item() == 1
    assert Retina(1, 1, 1)(image, centre.flip(1)).item() == 0


@pytest.mark.parametrize("size", [(40, 60), (200, 170)])
def test_coarse_patches_are_the_same_whether_a_table_pays_or_not(size, generator):
    retina = Retina(6, 3, 2)
    images = torch.randint(0, 256, (9, 2, *size), generator=generator).float()
    locations = torch.cat([torch.tensor(BORDERS)[:5], torch.rand(4, 2, generator=generator) * 2 - 1])
    many, few = retina.prepare(images, num_glimpses=10_000), retina.prepare(images, num_glimpses=0)
    assert many.sums is not None and few.sums is None
    assert torch.equal(retina.look(many, locations), retina.look(few, locations))


@pytest.mark.parametrize("num_glimpses", [0, 10_000])
@pytest.mark.parametrize("patch_size, num_patches, scale", [(6, 3, 2), (2, 5, 2), (2, 6, 2), (4, 4, 3)])
def test_bytes_are_normalised_where_they_are_read(patch_size, num_patches, scale, num_glimpses, generator):
    """With and without a summed-area table, in cells of up to 32 x 32 pixels."""
    images = torch.randint(100, 256, (4, 2, 80, 90), dtype=torch.uint8, generator=generator)
    images[0] = 255  # beyond the border is 0, which is the mean
    mean, std = torch.tensor([0.2, 0.7])[:, None, None], torch.tensor([0.3, 0.1])[:, None, None]
    locations = torch.rand(4, 2, generator=generator) * 2 - 1
    retina = Retina(patch_size, num_patches, scale)
    scene = retina.prepare(images, num_glimpses, mean, std)
    assert (scene.sums is None) == (num_glimpses == 0)
    assert scene.pixels.dtype == torch.uint8  # only what is read is converted
    expected = retina((images / 255 - mean) / std, locations)
    torch.testing.assert_close(retina.look(scene, locations), expected, atol=1e-5, rtol=1e-5)
