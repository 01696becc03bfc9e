"""The rollout, and where its gradients go."""

import copy

import numpy as np
import pytest
import torch
from helpers import SIZES

from model import RecurrentAttention, Rollout, hybrid_loss, log_normal

BATCH = 5
TRUNK = {"sensor", "rnn", "classifier"}


@pytest.fixture
def model() -> RecurrentAttention:
    torch.manual_seed(0)
    return RecurrentAttention(**SIZES)


@pytest.fixture
def images(generator) -> torch.Tensor:
    return torch.randn(BATCH, 1, 13, 16, generator=generator)


LABELS = torch.tensor([0, 1, 2, 0, 1])


def test_shapes_are_those_on_the_fields(model, images):
    rollout = model(images)
    assert rollout.log_probs.shape == (BATCH, 3)
    assert rollout.locations.shape == (BATCH, 4, 2)
    assert rollout.log_pis.shape == rollout.baselines.shape == (BATCH, 3)
    torch.testing.assert_close(rollout.log_probs.exp().sum(dim=1), torch.ones(BATCH))


def test_equals_the_papers_equations_step_by_step(model, images, generator):
    first = torch.rand(BATCH, 2, generator=generator) * 2 - 1
    noise = model.draw_noise(BATCH, images.device, generator)
    rollout = model(images, first, noise)

    def linear(layer, x):
        return x @ layer.weight.detach().numpy().T + (0 if layer.bias is None else layer.bias.detach().numpy())

    def rect(x):
        return np.maximum(x, 0)

    hidden, location = np.zeros((BATCH, 12)), first.numpy()
    for t in range(4):
        phi = model.retina(images, torch.from_numpy(location).float()).numpy()
        h_g, h_l = rect(linear(model.sensor.what, phi)), rect(linear(model.sensor.where, location))
        for_what, for_where = np.split(model.sensor.joined.weight.detach().numpy().T, 2)
        g = rect(h_g @ for_what + h_l @ for_where + model.sensor.joined.bias.detach().numpy())
        hidden = rect(linear(model.rnn.from_hidden, hidden) + linear(model.rnn.from_glimpse, g))
        np.testing.assert_allclose(rollout.locations[:, t].numpy(), location, atol=1e-5)
        if t < 3:
            scan = model.locator.scan[t].detach().numpy()
            mean = np.tanh(linear(model.locator.mean, rect(linear(model.locator.hidden[0], hidden))) + scan)
            sample = mean + 0.1 * noise[t].numpy()
            density = np.exp(-(((sample - mean) / 0.1) ** 2) / 2) / (0.1 * np.sqrt(2 * np.pi))
            np.testing.assert_allclose(rollout.log_pis[:, t].detach(), np.log(density).sum(axis=1), rtol=1e-4)
            baseline = linear(model.baseliner.expected_reward, hidden)[:, 0]
            np.testing.assert_allclose(rollout.baselines[:, t].detach(), baseline, atol=1e-5)
            location = np.clip(sample, -1, 1)
    scores = linear(model.classifier.scores, hidden)
    log_probs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(rollout.log_probs.detach(), log_probs, atol=1e-5)


def test_a_learned_first_location_is_chosen_like_the_others_from_the_state_before_any_glimpse(images, generator):
    torch.manual_seed(0)
    model = RecurrentAttention(**SIZES, first_location="learned")
    noise = model.draw_noise(BATCH, images.device, generator)
    rollout = model(images, None, noise)
    assert rollout.log_pis.shape == rollout.baselines.shape == (BATCH, 4)
    assert rollout.hiddens.shape == (BATCH, 4, 12)
    mean = torch.tanh(model.locator.mean(model.locator.hidden(torch.zeros(1, 12))) + model.locator.scan[0])
    torch.testing.assert_close(rollout.locations[:, 0], (mean + 0.1 * noise[0]).clamp(-1, 1))
    expected = torch.distributions.Normal(mean, 0.1).log_prob(mean + 0.1 * noise[0]).sum(dim=1)
    torch.testing.assert_close(rollout.log_pis[:, 0], expected)
    torch.testing.assert_close(rollout.baselines[:, 0], model.baseliner.expected_reward.bias.expand(BATCH))
    # Told where it looked, it sees, and so does, the same: the paper's rollout is this one with a random start.
    paper = RecurrentAttention(**SIZES)
    paper.load_state_dict({**model.state_dict(), "locator.scan": model.locator.scan[1:]})
    fixed = paper(images, rollout.locations[:, 0].detach(), noise[1:])
    for ours, theirs in ((rollout.log_probs, fixed.log_probs), (rollout.log_pis[:, 1:], fixed.log_pis),
                         (rollout.baselines[:, 1:], fixed.baselines), (rollout.hiddens, fixed.hiddens)):  # fmt: skip
        torch.testing.assert_close(ours, theirs)
    losses = hybrid_loss(rollout, LABELS, reinforce_weight=1.0)
    assert receivers(model, losses.reinforce) == {"locator"}


def test_looks_at_fixed_locations_and_chooses_the_rest(model, images, generator):
    given = torch.rand(BATCH, 3, 2, generator=generator) * 2 - 1
    rollout = model(images, given)
    torch.testing.assert_close(rollout.locations[:, :3], given)
    free = model(images, given[:, 0], noise=torch.zeros(3, BATCH, 2))
    assert not torch.equal(free.locations[:, 1:3], given[:, 1:])
    rollout.log_pis[:, :2].sum().backward()  # no policy chose these
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    assert model(images, given.repeat(1, 2, 1)[:, :4]).log_pis.grad_fn is None


def test_log_density_is_that_of_the_sample_before_the_clamp(model, images):
    noise = torch.full((3, BATCH, 2), 50.0)  # five units of location: far outside
    rollout = model(images, None, noise)
    assert rollout.locations[:, 1:].abs().max() == 1
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(torch.tensor(50.0)) - np.log(0.1)
    torch.testing.assert_close(rollout.log_pis, torch.full((BATCH, 3), 2 * expected.item()), rtol=1e-4, atol=1e-2)


def test_log_normal_equals_torch_distributions(generator):
    values, means = torch.randn(2, 6, 2, generator=generator)
    expected = torch.distributions.Normal(means, 0.3).log_prob(values).sum(-1)
    torch.testing.assert_close(log_normal(values, means, torch.tensor(0.3)), expected)


def receivers(model: RecurrentAttention, loss: torch.Tensor) -> set[str]:
    """Names of the boxes whose every parameter receives a gradient; no box may receive it in part."""
    model.zero_grad()
    loss.backward()
    boxes: dict[str, list[bool]] = {}
    for name, parameter in model.named_parameters():
        moved = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        boxes.setdefault(name.split(".")[0], []).append(moved)
    assert all(all(moved) or not any(moved) for moved in boxes.values()), boxes
    return {box for box, moved in boxes.items() if all(moved)}


@pytest.mark.parametrize(
    "term, boxes",
    [
        ("action", TRUNK),
        ("reinforce", {"locator"}),
        ("baseline", {"baseliner"}),
        ("total", {*TRUNK, "locator", "baseliner"}),
    ],
)
@pytest.mark.parametrize("reward", ["correct", "probability"])
def test_each_loss_term_trains_its_boxes_and_no_other(reward, model, images, term, boxes):
    torch.manual_seed(1)
    losses = hybrid_loss(model(images), LABELS, reinforce_weight=1.0, reward=reward)
    assert receivers(model, getattr(losses, term)) == boxes


def test_reinforce_trains_the_core_too_if_it_is_to(model, images):
    """The classifier and the baseline get nothing of it, and what it gives the location network stays the same."""
    noise, first, gradients = torch.randn(3, BATCH, 2), torch.zeros(BATCH, 2), []
    for model.reinforce_core, boxes in (False, {"locator"}), (True, {"locator", "sensor", "rnn"}):
        losses = hybrid_loss(model(images, first, noise), LABELS, reinforce_weight=1.0)
        assert receivers(model, losses.reinforce) == boxes
        gradients.append(model.locator.mean.weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("reward", ["correct", "probability"])
def test_reinforce_gradient_is_the_papers_estimate(reward, model, images, generator):
    """1/B sum over images and steps of grad log pi * (R - b), taken one location at a time."""
    noise = model.draw_noise(BATCH, images.device, generator)
    first = torch.zeros(BATCH, 2)
    rollout = model(images, first, noise)
    hybrid_loss(rollout, LABELS, reinforce_weight=1.0, reward=reward).reinforce.backward()
    gradient = model.locator.mean.bias.grad.clone()
    expected = torch.zeros(2)
    rewards = (rollout.log_probs.argmax(1) == LABELS).float()
    if reward == "probability":
        rewards = rollout.log_probs.exp()[range(BATCH), LABELS].detach()
    for i in range(BATCH):
        for t in range(3):
            model.zero_grad()
            model(images, first, noise).log_pis[i, t].backward()
            expected -= model.locator.mean.bias.grad * (rewards[i] - rollout.baselines[i, t].detach()) / BATCH
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reward, rewards", [("correct", (1, 0)), ("probability", (0.7, 0.4))])
def test_hybrid_loss_by_hand(reward, rewards):
    rollout = Rollout(
        log_probs=torch.log(torch.tensor([[0.7, 0.3], [0.6, 0.4]])),
        locations=torch.zeros(2, 3, 2),
        log_pis=torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        baselines=torch.tensor([[0.5, 0.25], [0.5, 1.0]]),
        hiddens=torch.zeros(2, 3, 1),
    )
    losses = hybrid_loss(rollout, torch.tensor([0, 1]), reinforce_weight=0.1, reward=reward)
    r, s = rewards
    action = -(np.log(0.7) + np.log(0.4)) / 2
    baseline = ((r - 0.5) ** 2 + (r - 0.25) ** 2 + (s - 0.5) ** 2 + (s - 1) ** 2) / 4
    reinforce = -(1 * (r - 0.5) + 2 * (r - 0.25) + 3 * (s - 0.5) + 4 * (s - 1)) / 2
    expected = [action + baseline + 0.1 * reinforce, action, baseline, reinforce, 0.5]
    np.testing.assert_allclose([term.item() for term in losses], expected, rtol=1e-6)


@pytest.mark.parametrize("num_glimpses", [1, 2, 5])
@pytest.mark.parametrize("locator_hidden, scan_radius", [(0, 0.0), (6, 0.0), (0, 0.3), (6, 0.3)])
@pytest.mark.parametrize("channels, num_patches, glimpse_scale, batch", [(1, 1, 1, 4), (3, 3, 2, 1), (2, 2, 3, 1)])
def test_every_combination_of_sizes_runs_and_learns(
    channels, num_glimpses, num_patches, glimpse_scale, locator_hidden, scan_radius, batch
):
    sizes = {"num_channels": channels, "num_glimpses": num_glimpses, "num_patches": num_patches, "loc_hidden": 5,
             "glimpse_scale": glimpse_scale, "locator_hidden": locator_hidden, "scan_radius": scan_radius}  # fmt: skip
    torch.manual_seed(0)  # by bad luck no unit of a layer answers to the single image of a batch
    model = RecurrentAttention(**{**SIZES, **sizes})
    before = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    losses = hybrid_loss(model(torch.randn(batch, channels, 9, 14)), LABELS[:batch], reinforce_weight=0.01)
    losses.total.backward()
    optimizer.step()
    assert all(term.isfinite() for term in losses)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    pairs = zip(model.named_parameters(), before.parameters(), strict=True)
    still = {name.partition(".")[0] for (name, now), then in pairs if torch.equal(now, then)}
    assert still <= ({"rnn", "locator", "baseliner"} if num_glimpses == 1 else set())


def test_the_policy_starts_on_the_circle_or_at_the_centre(images):
    for radius in (0.0, 0.4):
        torch.manual_seed(0)
        model = RecurrentAttention(**{**SIZES, "scan_radius": radius}).eval()
        torch.nn.init.zeros_(model.locator.mean.weight)
        torch.nn.init.zeros_(model.locator.mean.bias)
        chosen = model(images).locations[:, 1:]
        torch.testing.assert_close(chosen.norm(dim=2), torch.full((BATCH, 3), radius))
        gaps = (chosen - chosen.roll(1, dims=1)).norm(dim=2)
        torch.testing.assert_close(gaps, torch.full((BATCH, 3), radius * 3**0.5))  # an equilateral triangle


def test_evaluation_looks_at_the_mean_and_training_draws(model, images):
    first = torch.zeros(BATCH, 2)
    assert not torch.equal(model(images, first).locations, model(images, first).locations)
    model.eval()
    assert torch.equal(model(images, first).locations, model(images, first).locations)
    assert torch.equal(model(images, first).locations, model(images, first, torch.zeros(3, BATCH, 2)).locations)


def test_a_generator_fixes_the_rollout(model, images):
    rollouts = [model(images, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(rollouts[0].locations, rollouts[1].locations)
    assert rollouts[0].locations.abs().max() <= 1


def test_reinforce_finds_the_only_place_that_earns_reward():
    """Noise everywhere but one place, which alone shows the class: the policy must come to look there."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    sizes = {"num_patches": 1, "num_glimpses": 2, "num_classes": 2, "std": 0.25, "hidden_size": 32, "loc_hidden": 16,
             "glimpse_hidden": 32, "scan_radius": 0.0}  # fmt: skip
    model = RecurrentAttention(**{**SIZES, **sizes})
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    place = torch.tensor([0.4, -0.4])  # pixel (14, 6) of 20 x 20

    def distance() -> float:
        model.eval()
        with torch.no_grad():
            looked = model(torch.randn(256, 1, 20, 20, generator=generator), generator=generator).locations[:, 1]
        model.train()
        return (looked - place).norm(dim=1).mean().item()

    before = distance()
    for _ in range(800):
        labels = torch.randint(0, 2, (64,), generator=generator)
        images = torch.randn(64, 1, 20, 20, generator=generator)
        images[:, 0, 4:8, 12:16] = (labels * 4.0 - 2)[:, None, None]
        losses = hybrid_loss(model(images, generator=generator), labels, reinforce_weight=1.0)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert before > 0.4
    assert distance() < 0.2
