"""Canvases follow the authors' generator: uniform places, pieces of the same split, sums cut off at white."""

import numpy as np
import pytest
import torch
from helpers import loader_for_test, loaders_of

from config import Config, make_config
from images.batches import Canvas, Loader
from images.canvas import draw_canvases
from images.datasets import Examples
from training.cli import InputError

CPU = torch.device("cpu")
COUNT = 10_000


def reference_canvas(image: np.ndarray, pool: np.ndarray, size: int, num_clutter: int, random) -> np.ndarray:
    """One canvas, piece by piece."""
    canvas = np.zeros((size, size))
    height, width = image.shape
    for _ in range(num_clutter):
        source = pool[random.integers(len(pool))]
        top, left = random.integers(height - 8 + 1), random.integers(width - 8 + 1)
        y, x = random.integers(size - 8 + 1), random.integers(size - 8 + 1)
        canvas[y : y + 8, x : x + 8] += source[top : top + 8, left : left + 8]
    y, x = random.integers(size - height + 1), random.integers(size - width + 1)
    canvas[y : y + height, x : x + width] += image
    return np.minimum(canvas, 255)


def uniform(values: torch.Tensor, low: int, high: int) -> bool:
    """Whether whole numbers are spread evenly: chi squared within six standard deviations of its mean."""
    counts = torch.bincount(values - low, minlength=high - low + 1).double()
    expected = len(values) / (high - low + 1)
    chi_squared = ((counts - expected) ** 2 / expected).sum().item()
    freedom = high - low
    return len(counts) == high - low + 1 and chi_squared < freedom + 6 * (2 * freedom) ** 0.5


def flat(value: int, count: int = 1) -> torch.Tensor:
    return torch.full((count, 1, 28, 28), value, dtype=torch.uint8)


def test_statistics_are_those_of_the_reference(generator):
    digits = np.random.default_rng(1).integers(0, 256, (50, 28, 28)) * (
        np.random.default_rng(2).random((50, 28, 28)) < 0.2
    )
    pool = torch.from_numpy(digits).to(torch.uint8)[:, None]
    index = torch.arange(COUNT) % 50
    ours = draw_canvases(pool[index], pool, size=60, num_clutter=4, generator=generator).images[:, 0].double().numpy()
    random = np.random.default_rng(3)
    theirs = np.stack([reference_canvas(digits[i], digits, 60, 4, random) for i in index])
    assert ours.min() == 0 and ours.max() == theirs.max() == 255
    sums = ours.sum(axis=(1, 2)), theirs.sum(axis=(1, 2))
    np.testing.assert_allclose(sums[0].mean(), sums[1].mean(), rtol=0.005)
    np.testing.assert_allclose(sums[0].std(), sums[1].std(), rtol=0.05)
    # The mean canvas: bright in the middle, dark at the border; each pixel's mean is known to about 2 %.
    difference = ours.mean(axis=0) - theirs.mean(axis=0)
    error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / COUNT)
    assert np.abs(difference).max() < 6 * error.max()
    assert np.corrcoef(ours.mean(axis=0).ravel(), theirs.mean(axis=0).ravel())[0, 1] > 0.98


def test_the_image_is_whole_and_at_a_uniform_place(generator):
    canvases = draw_canvases(flat(7, COUNT), flat(0), size=60, num_clutter=0, generator=generator).images[:, 0]
    rows, columns = canvases.amax(dim=2) > 0, canvases.amax(dim=1) > 0
    assert (rows.sum(dim=1) == 28).all() and (columns.sum(dim=1) == 28).all()
    assert (canvases.long().sum(dim=(1, 2)) == 7 * 28 * 28).all()
    tops, lefts = rows.int().argmax(dim=1), columns.int().argmax(dim=1)
    assert uniform(tops, 0, 32) and uniform(lefts, 0, 32)
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.05


def test_clutter_is_the_asked_number_of_8x8_windows_anywhere(generator):
    canvases = draw_canvases(flat(0, COUNT), flat(1), size=60, num_clutter=4, generator=generator).images
    assert (canvases.long().sum(dim=(1, 2, 3)) == 4 * 64).all()
    single = draw_canvases(flat(0, COUNT), flat(1), size=60, num_clutter=1, generator=generator).images[:, 0]
    rows, columns = single.amax(dim=2) > 0, single.amax(dim=1) > 0
    assert (rows.sum(dim=1) == 8).all() and (columns.sum(dim=1) == 8).all()
    assert uniform(rows.int().argmax(dim=1), 0, 52) and uniform(columns.int().argmax(dim=1), 0, 52)


def test_windows_are_cut_anywhere_from_any_image_of_the_pool(generator):
    rows = torch.arange(1, 29, dtype=torch.uint8).view(1, 1, 28, 1).expand(1, 1, 28, 28)
    sources = torch.cat([rows, rows + 30, rows.transpose(2, 3) + 60])  # distinct by their values
    canvases = draw_canvases(flat(0, COUNT), sources, size=60, num_clutter=1, generator=generator).images
    canvases = canvases.flatten(1).long()
    lowest = canvases.masked_fill(canvases == 0, 255).amin(dim=1) - 1  # 30 * source + first row or column cut
    assert uniform(lowest // 30, 0, 2)
    for source in range(3):
        assert uniform(lowest[lowest // 30 == source] % 30, 0, 20)


def test_values_are_added_and_clamped(generator):
    canvases = draw_canvases(flat(150, 500), flat(60), size=30, num_clutter=1, generator=generator).images
    assert set(canvases.unique().tolist()) == {0, 60, 150, 210}
    canvases = draw_canvases(flat(250, 500), flat(60), size=30, num_clutter=1, generator=generator).images
    assert canvases.max() == 255


@pytest.mark.parametrize("num_clutter", [127, 128, 1000])
def test_a_pile_of_white_pieces_is_white(num_clutter, generator):
    white = torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)  # as large as the canvas: all pieces lie on one another
    assert (draw_canvases(white, white, size=8, num_clutter=num_clutter, generator=generator).images == 255).all()


def test_one_seed_repeats_and_two_differ():
    images = torch.randint(0, 256, (9, 3, 12, 10), dtype=torch.uint8)

    def canvases(seed):
        generator = torch.Generator().manual_seed(seed)
        return draw_canvases(images, images, size=20, num_clutter=2, generator=generator).images

    assert canvases(0).shape == (9, 3, 20, 20)
    assert torch.equal(canvases(0), canvases(0)) and not torch.equal(canvases(0), canvases(1))


def test_training_canvases_are_new_each_epoch_and_repeat_by_seed():
    examples = Examples(torch.randint(0, 256, (20, 1, 28, 28), dtype=torch.uint8), torch.arange(20))

    def epoch(number, seed=1):
        loader = Loader(examples, batch_size=8, device=CPU, canvas=Canvas(60, 4), canvas_seed=seed)
        loader.set_epoch(number)
        return torch.cat([batch.images for batch in loader.raw()])

    assert torch.equal(epoch(0), epoch(0))
    assert not torch.equal(epoch(0), epoch(1)) and not torch.equal(epoch(0), epoch(0, seed=2))


def digits(**fields) -> Config:
    return make_config(**{"dataset": "digits", "canvas_size": 40, "num_clutter": 2, **fields})


def test_evaluation_canvases_are_the_same_in_every_run():
    def canvases(**fields):
        loaders = loaders_of(digits(**fields))
        test = loader_for_test(digits(**fields), loaders[0].spec)
        return [torch.cat([batch.images for batch in loader.raw()]) for loader in (loaders[1], test)]

    first, again, other_batch = canvases(), canvases(), canvases(batch_size=7)
    for part in range(2):
        assert torch.equal(first[part], again[part]) and torch.equal(first[part], other_batch[part])


def test_validation_and_test_have_places_of_their_own():
    config = digits(valid_size=0.25)
    train_loader, valid_loader = loaders_of(config)
    valid, test = valid_loader.centres, loader_for_test(config, train_loader.spec).centres
    assert len(valid) == len(test)  # as many are drawn alike from one seed
    assert (valid == test).all(dim=1).float().mean() < 0.05  # by chance one in 13 * 13


def test_clutter_comes_from_the_same_split(monkeypatch):
    config = digits()
    pools = []
    monkeypatch.setattr(
        "images.batches.draw_canvases",
        lambda images, pool, **rest: pools.append(pool) or draw_canvases(images, pool, **rest),
    )
    train, valid = loaders_of(config)
    next(iter(train))
    rows = [{bytes(image.numpy()) for image in pool} for pool in (pools[-1], pools[-2])]
    assert [len(part) for part in rows] == [train.num_images, valid.num_images]
    assert not rows[0] & rows[1]


def test_a_canvas_smaller_than_the_images_is_rejected():
    with pytest.raises(InputError, match="canvas_size=20 is smaller than the images, 28 x 28"):
        loaders_of(digits(canvas_size=20))


def test_clutter_without_a_canvas_is_rejected():
    with pytest.raises(InputError, match="num_clutter=3 is not allowed"):
        make_config(num_clutter=3)
