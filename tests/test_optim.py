"""Muon with Adam, as one optimizer; the average of the weights."""

import copy

import pytest
import torch
from torch import optim
from torch.utils._python_dispatch import TorchDispatchMode

from config import make_config
from model import RecurrentAttention
from training.optim import (
    average_weights,
    learning_rate,
    load_optimizer,
    load_plateau,
    make_optimizer,
    make_plateau,
    orthogonalize,
)

CONFIG = make_config(optimizer="muon", init_lr=3e-3, momentum=0.8, epochs=4, num_glimpses=3)


def step(*optimizers: optim.Optimizer, turn: int = 1):
    """One step along gradients that depend on the weights alone, another way each turn."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    weights = [weight for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"]]
    rate = 300 * turn  # high enough that hardly two weights have the same gradient, and none that of the turn before
    sum((rate * weight).sin().sum() / rate for weight in weights).backward()
    for optimizer in optimizers:
        optimizer.step()


# A whole number of blocks, not, and blocks that are taller than wide.
@pytest.mark.parametrize(("hidden_size", "patch_size"), [(256, 8), (96, 8), (256, 4)])
@pytest.mark.parametrize("core", ["relu", "lstm"])
def test_muon_steps_blocks_of_the_hidden_weights_as_torchs_and_adam_the_rest_at_one_rate(core, hidden_size, patch_size):
    sizes = {"hidden_size": hidden_size, "glimpse_hidden": hidden_size, "patch_size": patch_size}
    config = CONFIG.replace(core=core, **sizes)
    torch.manual_seed(0)
    model = RecurrentAttention(**config.model_args(1, 10))
    start, twin = copy.deepcopy(model), copy.deepcopy(model)
    optimizer = make_optimizer(config.training, model)
    hidden = {"sensor.what.weight", "sensor.joined.weight", "rnn.from_glimpse.weight", "rnn.from_hidden.weight",
              "rnn.cell.weight_ih", "rnn.cell.weight_hh"}  # fmt: skip
    blocks, adams = {}, []
    for name, weight in twin.named_parameters():
        if name in hidden:
            rows = 64 if len(weight) % 64 == 0 else len(weight)
            blocks[name] = [torch.nn.Parameter(block) for block in weight.detach().clone().split(rows)]
        else:
            adams.append(weight)
    assert len(blocks) == 4
    every = [block for each in blocks.values() for block in each]
    muon = optim.Muon(every, weight_decay=0, momentum=0.8, ns_steps=3, adjust_lr_fn="match_rms_adamw")
    adam = optim.Adam(adams, betas=(0.8, 0.999), fused=True)
    for epoch in range(3):
        for group in muon.param_groups + adam.param_groups + optimizer.param_groups:
            group["lr"] = learning_rate(config.training, epoch)
        step(optimizer, turn=epoch + 1)
        step(muon, adam, turn=epoch + 1)
    for name, weight in twin.named_parameters():
        ours = model.get_parameter(name)
        if name in hidden:  # torch's products are bfloat16: three digits
            way = torch.cat(blocks[name]) - start.get_parameter(name)
            assert (ours - torch.cat(blocks[name])).norm() < 0.02 * way.norm()  # 0.008 were seen
        else:
            torch.testing.assert_close(ours, weight, rtol=1e-6, atol=1e-7)


def test_muon_multiplies_in_float32():
    """In bfloat16 where there is none in hardware, as in torch's, a step takes many times as long."""
    model = RecurrentAttention(**CONFIG.model_args(1, 10))
    optimizer = make_optimizer(CONFIG.training, model)
    seen = set()

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in (torch.ops.aten.bmm.default, torch.ops.aten.baddbmm.default):
                seen.add(args[0].dtype)
            return function(*args, **(kwargs or {}))

    step(optimizer)
    with Products():
        optimizer.step()
    assert seen == {torch.float32}


def test_orthogonalize_takes_newton_schulz_steps():
    a, b, c = 3.4445, -4.775, 2.0315
    batches = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in [(1, 20, 50), (3, 30, 20)]]
    expected = []
    for batch in batches:
        x = batch / batch.norm(dim=(1, 2), keepdim=True)
        for _ in range(3):
            gram = x @ x.mT
            x = a * x + b * gram @ x + c * gram @ gram @ x
        expected.append(x)
    torch.testing.assert_close(orthogonalize(batches, 3, (a, b, c)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 40), (20, 50), (50, 20)])
def test_orthogonalize_goes_towards_the_orthogonal_factor(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    matrices *= torch.tensor([1.0, 100.0, 0.01])[:, None, None]  # each counts by itself
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    # By these coefficients, Newton's own, it converges; Muon's only come near, in fewer iterations.
    torch.testing.assert_close(orthogonalize([matrices], 30, (1.5, -0.5, 0.0)), [u @ v], rtol=0, atol=1e-9)


@pytest.mark.parametrize("optimizer", ["muon", "adam", "sgd"])
def test_weight_decay_shrinks_the_weights_by_its_fraction_of_each_step(optimizer):
    config = CONFIG.replace(optimizer=optimizer, weight_decay=0.5)
    model = RecurrentAttention(**config.model_args(1, 10))
    expected = [parameter * (1 - 3e-3 * 0.5) for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # nothing else moves the weights
    make_optimizer(config.training, model).step()
    for parameter, value in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter, value)


@pytest.mark.parametrize("count", [int, lambda steps: torch.tensor(float(steps))], ids=["number", "tensor"])
def test_the_average_is_of_the_latest_tenth_of_the_weights_at_first_and_then_exponential(count):
    average, model = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    expected = average.bias.item()
    for steps in range(1, 31):
        with torch.no_grad():
            model.bias.fill_(steps)
        average_weights(average, model, 0.7, count(steps))
        share = max(9 / (10 + steps), 0.3)  # of the newest weights, from step 20 on 1 - 0.7
        expected += share * (steps - expected)
        assert average.bias.item() == pytest.approx(expected, rel=1e-5)
    average_weights(average, model, 0.0, 31)
    assert torch.equal(average.bias, model.bias)


def test_the_average_has_the_buffers_of_the_model():
    """The statistics of a batch normalisation, say, which somebody adds."""
    model = torch.nn.BatchNorm1d(3)
    average = copy.deepcopy(model)
    model(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    average_weights(average, model, 0.9, 1)
    assert all(torch.equal(*pair) for pair in zip(average.buffers(), model.buffers(), strict=True))
    assert average.num_batches_tracked == 1


def test_the_learning_rate_falls_along_a_half_cosine():
    rates = [learning_rate(CONFIG.training, epoch) for epoch in range(6)]
    assert rates == pytest.approx([3e-3, 3e-3 * (1 + 0.5**0.5) / 2, 1.5e-3, 3e-3 * (1 - 0.5**0.5) / 2, 0, 0])


@pytest.mark.parametrize("optimizer", ["muon", "adam", "sgd"])
def test_an_optimizers_state_is_restored_and_fits_no_other(optimizer):
    config = CONFIG.replace(optimizer=optimizer)
    model = RecurrentAttention(**config.model_args(1, 10))
    trained = make_optimizer(config.training, model)
    step(trained)
    state = copy.deepcopy(trained.state_dict())
    for group in state["param_groups"]:  # another version of torch has an entry more and one less
        group["of_another_version"] = None
        del group["maximize" if "maximize" in group else "ns_steps"]
    again = make_optimizer(config.training, model)
    load_optimizer(again, state)
    for parameter in model.parameters():
        for name, value in trained.state[parameter].items():
            assert torch.equal(again.state[parameter][name], value)
    other = make_optimizer(config.replace(momentum=0.5).training, model)
    with pytest.raises(ValueError, match=r"another (momentum|betas)"):
        load_optimizer(other, state)
    wider = RecurrentAttention(**config.replace(hidden_size=32).model_args(1, 10))
    with pytest.raises(ValueError, match="shape"):
        load_optimizer(make_optimizer(config.training, wider), state)


def test_a_schedules_state_of_another_version_of_torch_is_restored():
    config = CONFIG.replace(lr_patience=1)
    model = RecurrentAttention(**config.model_args(1, 10))
    trained, again = (make_plateau(config.training, make_optimizer(config.training, model)) for _ in range(2))
    for acc in (3.0, 2.0):
        trained.step(acc)
    state = {**trained.state_dict(), "of_another_version": 1}
    del state["verbose" if "verbose" in state else "eps"]
    load_plateau(again, state)
    assert (again.best, again.num_bad_epochs) == (3.0, 1) and not hasattr(again, "of_another_version")
    with pytest.raises(ValueError, match="its schedule's best is high"):
        load_plateau(again, {**state, "best": "high"})
