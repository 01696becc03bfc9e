"""Pictures: boxes sit on the pixels that the retina read, and what is drawn is what the glimpses hold."""

import itertools

import numpy as np
import pytest
from helpers import make_glimpses
from PIL import Image

from training.cli import InputError
from viz.figures import frame_figure, glimpse_frames, patches_figure, path_figure
from viz.files import animation, gif, to_image
from viz.record import patch_boxes

ORANGE, SKY, GREEN = (230, 159, 0), (86, 180, 233), (0, 158, 115)  # boxes, from the finest


def image_of(frame: np.ndarray) -> np.ndarray:
    """The image in a frame of one square image: below the words, above the patches."""
    return frame[61 : 61 + 144, 3:147]


def outline(frame: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns (n, 2) of a picture's pixels of about this colour."""
    return np.argwhere((abs(frame.astype(int) - colour) < 30).all(axis=2))


def test_a_box_covers_what_the_retina_read(glimpses):
    boxes = glimpses.boxes()
    assert boxes.shape == (3, 4, 2, 3)
    for i in range(3):
        for t in range(4):
            left, top, width = boxes[i, t, 0].astype(int)
            assert width == 5
            inside = np.pad(glimpses.images[i, 0], 40)[top + 40 : top + 45, left + 40 : left + 45]
            np.testing.assert_array_equal(glimpses.patches[i, t, 0, 0], inside)


def test_a_class_may_be_named_as_a_formula_is(glimpses):
    count = len(glimpses.classes)
    assert list(glimpse_frames(glimpses._replace(classes=np.array(["$5_$", "$", "a$b$c"][:count]))))


def test_wider_boxes_hold_the_finer_ones(glimpses):
    boxes = glimpses.boxes()
    fine, coarse = boxes[:, :, 0], boxes[:, :, 1]
    assert (coarse[..., :2] <= fine[..., :2]).all()
    assert (coarse[..., :2] + coarse[..., 2:] >= fine[..., :2] + fine[..., 2:]).all()


@pytest.mark.parametrize("suffix", [".gif", ".png"])
def test_the_drawn_box_lies_around_the_pixels_that_were_read(suffix, tmp_path):
    """Rendered: the image's white pixels are those that the retina returned, and the box is around them alone."""
    place = np.array([[[2 * 21.5 / 30 - 1, 2 * 8.5 / 30 - 1]]], np.float32)
    left, top, size = patch_boxes(place, (30, 30), 6, 1, 1)[0, 0, 0].astype(int)
    image = np.zeros((1, 1, 30, 30), np.float32)
    image[0, 0, top : top + size, left : left + size] = 1
    drawn = make_glimpses(image, place, patch_size=6, num_patches=1, scale=1, labels=np.array([1]))
    assert (drawn.patches == 1).all()
    (tmp_path / f"a{suffix}").write_bytes(animation(glimpse_frames(drawn), suffix, 2.0))
    frame = np.asarray(Image.open(tmp_path / f"a{suffix}").convert("RGB"))
    picture = image_of(frame)
    box = outline(picture, ORANGE)
    black = (picture < 60).all(axis=2)
    white = (picture > 200).all(axis=2)
    low, high = box.min(axis=0), box.max(axis=0)
    inner = np.s_[low[0] + 4 : high[0] - 3, low[1] + 4 : high[1] - 3]
    assert white[inner].mean() > 0.8  # but for the dot in its middle
    rows, columns = slice(low[0], high[0]), slice(low[1], high[1])
    assert black[rows, low[1] - 8 : low[1] - 3].all() and black[rows, high[1] + 4 : high[1] + 9].all()
    assert black[low[0] - 8 : low[0] - 3, columns].all() and black[high[0] + 4 : high[0] + 9, columns].all()
    middle = (low + high) / 2 / len(picture)
    assert middle[0] < 0.5 and middle[1] > 0.6  # above the middle, right of it: x and y not swapped


def test_drawn_boxes_are_nested_one_per_scale():
    image = np.zeros((1, 1, 60, 60), np.float32)
    frame = np.asarray(to_image(frame_figure(make_glimpses(image, np.zeros((1, 1, 2), np.float32), 6, 3), 0)))
    picture = image_of(frame)
    spans = [outline(picture, colour) for colour in (ORANGE, SKY, GREEN)]
    widths = [np.ptp(span[:, 1]) for span in spans]
    assert widths[1] == pytest.approx(2 * widths[0], abs=4) and widths[2] == pytest.approx(4 * widths[0], abs=6)
    for inner, outer in itertools.pairwise(spans):
        assert (inner.min(axis=0) > outer.min(axis=0)).all() and (inner.max(axis=0) < outer.max(axis=0)).all()


def test_the_path_grows_towards_the_right_place():
    """Two glimpses, top left and bottom right: the second frame alone has a line, which falls from left to right."""
    grey = np.full((1, 1, 40, 40), 0.5, np.float32)
    corners = np.array([[[-0.5, -0.8], [0.9, 0.2]]], np.float32)
    first, second = (np.asarray(f) for f in glimpse_frames(make_glimpses(grey, corners, 4, 1)))
    dots = [np.argwhere((image_of(frame)[8:-8, 8:-8] > 250).all(axis=2)) for frame in (first, second)]
    assert np.ptp(dots[0], axis=0).max() < 8 < np.ptp(dots[1], axis=0).min()
    assert np.corrcoef(dots[1].T)[0, 1] > 0.9


def test_a_wrong_prediction_and_a_right_one_differ_without_colour(glimpses):
    sure = np.eye(3)[[[0] * 4, [0] * 4, [2] * 4]]  # right, wrong, right
    words = [text.get_text() for ax in frame_figure(glimpses._replace(probabilities=sure), 3).axes for text in ax.texts]
    assert [word for word in words if word.startswith("says")] == ["says zero ✓", "says zero ✗", "says two ✓"]
    assert [word.strip() for word in words if word.startswith("is")] == ["is zero", "is one", "is two"]


def test_bars_are_the_probabilities(glimpses):
    axes = [ax for ax in frame_figure(glimpses, 2).axes if len(ax.patches) == 3 and ax.get_ylim() == (0, 1)]
    heights = [[bar.get_height() for bar in ax.patches] for ax in axes]
    np.testing.assert_allclose(heights, glimpses.probabilities[:, 2])


def test_of_many_classes_the_label_and_the_likeliest_have_a_bar(glimpses):
    probabilities = np.full((3, 4, 40), 0.01)
    probabilities[:, 1, 7], probabilities[:, 3, 30] = 0.61, 0.61
    classes = np.array([f"class {k}" for k in range(40)])
    figure = frame_figure(glimpses._replace(probabilities=probabilities, classes=classes, labels=np.array([39] * 3)), 1)
    names = [[tick.get_text() for tick in ax.get_xticklabels()] for ax in figure.axes if len(ax.patches) == 10]
    assert len(names) == 3 and all({"class 7", "class 30", "class 39"} <= set(shown) for shown in names)


def test_colour_images_and_one_glimpse_and_many_images_draw():
    random = np.random.default_rng(0)
    colour = make_glimpses(random.random((8, 3, 24, 16), dtype=np.float32), np.zeros((8, 1, 2), np.float32))
    [frame] = glimpse_frames(colour)
    assert frame.width == 900 and to_image(path_figure(colour)).width == 900
    assert np.ptp(np.asarray(frame)[60:100, 10:140].astype(int), axis=2).max() > 100  # in colour


def test_frames_stay_as_long_as_asked_and_the_last_longer(tmp_path, glimpses):
    (tmp_path / "a.gif").write_bytes(gif(list(glimpse_frames(glimpses)), fps=4))
    picture, durations = Image.open(tmp_path / "a.gif"), []
    for k in range(picture.n_frames):
        picture.seek(k)
        durations.append(picture.info["duration"])
    assert durations == [250, 250, 250, 750] and picture.info["loop"] == 0


def test_too_many_images_for_a_picture_are_rejected():
    many = make_glimpses(np.zeros((1500, 1, 8, 8), np.float32), np.zeros((1500, 1, 2), np.float32), 2, 1)
    with pytest.raises(InputError, match="1500 images make too tall a picture"):
        frame_figure(many, 0)


def test_a_column_for_each_example_shows_the_image_its_boxes_and_every_patch(glimpses):
    coarse = make_glimpses(np.ones((1, 1, 40, 40), np.float32), np.zeros((1, 1, 2), np.float32), 6, 3)
    figure = patches_figure({"fine": glimpses, "coarse": coarse})
    columns = np.array(figure.axes).reshape(4, 2).T
    assert [column[0].get_title() for column in columns] == ["fine", "coarse"]
    for column, drawn in zip(columns, (glimpses, coarse), strict=True):
        boxes = [(box.get_x() + 0.5, box.get_y() + 0.5, box.get_width()) for box in column[0].patches]
        np.testing.assert_allclose(boxes, drawn.boxes()[0, 0])
        shown = [ax.images[0].get_array()[..., 0] for ax in column[1:] if ax.images]
        np.testing.assert_allclose(shown, drawn.patches[0, 0, :, 0], atol=1e-6)
