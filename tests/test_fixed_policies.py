"""Where an unlearned policy looks."""

import json

import pytest
import torch

from config import make_config
from images.batches import Canvas, Loader
from images.datasets import Examples
from model import RecurrentAttention
from modules import circle
from training.checkpoint import load_checkpoint
from training.cli import InputError
from training.evaluation import evaluation_locations
from training.fixed_policies import fixed_locations

CONFIG = make_config(num_glimpses=5, scan_radius=0.3, patch_size=4, canvas_size=40)
CPU = torch.device("cpu")


@pytest.fixture
def starts(generator):
    return torch.rand(1000, 2, generator=generator) * 2 - 1


def test_a_learned_policy_is_given_its_start_alone(starts):
    assert fixed_locations(CONFIG, starts, torch.zeros(1000, 2)) is starts


@pytest.mark.parametrize("policy", ["random", "scan", "oracle", "still"])
def test_every_path_begins_at_the_start_and_stays_on_the_image(policy, starts, generator):
    path = fixed_locations(CONFIG.replace(policy=policy), starts, starts, generator)
    assert path.shape == (1000, 5, 2)
    assert torch.equal(path[:, 0], starts)
    assert path.abs().max() <= 1
    assert fixed_locations(CONFIG.replace(policy=policy, num_glimpses=1), starts, starts) is starts


def test_a_random_path_is_uniform_and_an_images_own(starts, generator):
    path = fixed_locations(CONFIG.replace(policy="random"), starts, starts, generator)[:, 1:]
    assert path.flatten(0, 1).unique(dim=0).shape == (4000, 2)
    torch.testing.assert_close(path.mean((0, 1)), torch.zeros(2), atol=0.04, rtol=0)
    torch.testing.assert_close(path.var((0, 1)), torch.full((2,), 1 / 3), atol=0.03, rtol=0)


def test_a_still_gaze_stays_where_it_begins(starts):
    path = fixed_locations(CONFIG.replace(policy="still"), starts, starts.flip(0))
    assert torch.equal(path, starts[:, None].expand(-1, 5, -1))


def test_a_scan_is_the_circle_that_a_learned_policy_begins_on(starts):
    path = fixed_locations(CONFIG.replace(policy="scan"), starts, starts)
    assert torch.equal(path[7, 1:], circle(4, 0.3))
    torch.testing.assert_close(circle(4, 0.3), torch.tensor([[0.3, 0], [0, 0.3], [-0.3, 0], [0, -0.3]]))


def test_an_oracle_looks_at_the_middle_of_the_object_and_half_a_patch_from_it(starts):
    """White squares of 10 pixels on canvases of 40, at every place."""
    squares = Examples(torch.full((500, 1, 10, 10), 255, dtype=torch.uint8), torch.zeros(500, dtype=torch.long))
    loader = Loader(squares, batch_size=500, device=CPU, canvas=Canvas(40, 0))
    images, _, centres = next(loader.raw())
    rows, columns = images.amax(3)[:, 0] > 0, images.amax(2)[:, 0] > 0  # (500, 40), where the square is
    pixels = torch.arange(40) + 0.5
    middles = torch.stack([(lines * pixels).sum(1) / 10 for lines in (columns, rows)], dim=1)  # (x, y)
    path = fixed_locations(CONFIG.replace(policy="oracle"), starts[:500], centres)
    torch.testing.assert_close((path[:, 1] + 1) / 2 * 40, middles)
    distances = ((path[:, 2:] - path[:, 1:2]) / 2 * 40).norm(dim=-1)
    torch.testing.assert_close(distances, torch.full((500, 3), 2.0))


def test_evaluation_paths_do_not_depend_on_the_size_of_batches(run):
    run("--epochs=1", "--policy=random")
    correct = []
    for batch_size in (64, 17):
        config = run("--is_train=False", f"--batch_size={batch_size}")
        correct.append(json.loads((config.run_dir / "test.json").read_text())["tests"]["M=1"]["correct"])
    assert correct[0] == correct[1]


def test_evaluation_knows_where_each_canvas_shows_what(generator):
    centres = torch.rand(6, 2, generator=generator)
    images, labels = torch.zeros(6, 1, 40, 40, dtype=torch.uint8), torch.zeros(6, dtype=torch.long)
    loader = Loader(Examples(images, labels, centres), batch_size=4, device=CPU)
    locations = evaluation_locations(CONFIG.replace(policy="oracle", M=2), loader)
    assert locations.shape == (2, 6, 5, 2)
    torch.testing.assert_close(locations[:, :, 1], centres.expand(2, -1, -1))
    assert not torch.equal(locations[0, :, 0], locations[1, :, 0])


def test_an_unlearned_policy_leaves_the_location_network_as_it_was(run):
    canvas = ("--canvas_size=40", "--policy=oracle")
    states = [
        load_checkpoint(run(f"--epochs={n}", f"--run_name={n}", *canvas).run_dir / "last.pt")["model_state"]
        for n in (1, 2)
    ]
    changed = {name.split(".")[0] for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    assert changed == {"sensor", "rnn", "classifier", "baseliner"}


@pytest.mark.parametrize("first_location", ["random", "centre", "learned"])
def test_training_test_and_the_model_by_itself_begin_where_first_location_says(first_location, run, monkeypatch):
    begun = []
    forward = RecurrentAttention.forward

    def recorded(model, *args, **kwargs):
        rollout = forward(model, *args, **kwargs)
        begun.append((model.training, rollout.locations[:, 0]))
        return rollout

    monkeypatch.setattr(RecurrentAttention, "forward", recorded)
    config = run("--epochs=1", "--compile=False", f"--first_location={first_location}")
    run("--is_train=False")
    RecurrentAttention.load(config.run_dir / "best.pt")(torch.zeros(100, 1, 28, 28))
    assert {training for training, _ in begun} == {True, False}
    for training, first in begun:
        if first_location == "centre":
            assert (first == 0).all()
        else:  # the policy's are drawn around one place, which is where it looks in a test
            places = len(first.unique(dim=0))
            assert places == 1 if first_location == "learned" and not training else places == len(first)


def test_rollouts_that_are_all_the_same_are_rejected():
    with pytest.raises(InputError, match="M=10 is not allowed: it must be 1 if --first_location= is not random"):
        make_config(first_location="centre", M=10)
    assert make_config(first_location="centre", policy="random", M=10).training.M == 10


def test_a_policy_that_has_nothing_to_go_by_is_rejected():
    for policy in ("random", "scan", "oracle"):
        with pytest.raises(InputError, match="it must be learned with --first_location=learned"):
            make_config(policy=policy, first_location="learned", canvas_size=40)
    with pytest.raises(InputError, match="canvas_size"):
        make_config(policy="oracle")
    with pytest.raises(InputError, match="scan_radius"):
        make_config(policy="scan", scan_radius=0.0)
