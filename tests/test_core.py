"""The core networks: the paper's, and the LSTM."""

import pytest
import torch
from helpers import SIZES
from torch import nn

from model import RecurrentAttention, hybrid_loss
from modules import CoreNetwork, LSTMCore

BATCH, SIZE, STEPS = 5, 12, 4


def roll(core: nn.Module, glimpses: torch.Tensor) -> torch.Tensor:
    """h_1 to h_T, (T, B, SIZE)."""
    state, hiddens = None, []
    for glimpse in glimpses:
        hidden, state = core(glimpse, state)
        hiddens.append(hidden)
    return torch.stack(hiddens)


@pytest.fixture
def glimpses(generator) -> torch.Tensor:
    return torch.randn(STEPS, BATCH, SIZE, generator=generator)


def test_relu_core_is_torchs_recurrent_network_of_rectified_units(glimpses):
    core = CoreNetwork(hidden_size=SIZE)
    network = nn.RNN(SIZE, SIZE, nonlinearity="relu")
    network.load_state_dict({
        "weight_ih_l0": core.from_glimpse.weight, "bias_ih_l0": core.from_glimpse.bias,
        "weight_hh_l0": core.from_hidden.weight, "bias_hh_l0": torch.zeros(SIZE),
    })  # fmt: skip
    torch.testing.assert_close(roll(core, glimpses), network(glimpses)[0])


def test_lstm_core_is_torchs_lstm(glimpses):
    core = LSTMCore(hidden_size=SIZE, keep=True)
    network = nn.LSTM(SIZE, SIZE)
    network.load_state_dict({f"{name}_l0": value for name, value in core.cell.state_dict().items()})
    torch.testing.assert_close(roll(core, glimpses), network(glimpses)[0])


@pytest.mark.parametrize("keep", [True, False])
def test_relu_core_begins_as_a_running_sum_if_it_is_to_keep(glimpses, keep):
    core = CoreNetwork(hidden_size=SIZE, keep=keep)
    nn.init.eye_(core.from_glimpse.weight)
    nn.init.zeros_(core.from_glimpse.bias)
    sums = glimpses.abs().cumsum(dim=0)
    assert torch.allclose(roll(core, glimpses.abs()), sums) == keep


@pytest.mark.parametrize("keep", [True, False])
def test_lstm_core_begins_with_an_open_forget_gate_if_it_is_to_keep(keep):
    torch.manual_seed(0)
    core = LSTMCore(hidden_size=SIZE, keep=keep)
    for weight in (core.cell.weight_ih, core.cell.weight_hh, core.cell.bias_ih):
        nn.init.zeros_(weight)
    state = torch.zeros(1, SIZE), 1000 * torch.ones(1, SIZE)
    kept = core(torch.zeros(1, SIZE), state)[1][1] / 1000
    assert torch.allclose(kept, torch.sigmoid(torch.ones(1, SIZE)), atol=2e-3) == keep


@pytest.mark.parametrize("core", ["relu", "lstm"])
@pytest.mark.parametrize("core_init", ["uniform", "identity"])
def test_a_model_is_built_with_the_core_asked_for(core, core_init):
    model = RecurrentAttention(**SIZES, core=core, core_init=core_init)
    assert isinstance(model.rnn, LSTMCore if core == "lstm" else CoreNetwork)
    kept = torch.equal(model.rnn.from_hidden.weight, torch.eye(SIZE)) if core == "relu" else (
        bool((model.rnn.cell.bias_hh[SIZE : 2 * SIZE] == 1).all())
    )  # fmt: skip
    assert kept == (core_init == "identity")


@pytest.mark.parametrize("weight, trained", [(0.0, False), (1.0, True)])
def test_reinforce_trains_the_location_network_on_an_lstm_and_nothing_else_does(weight, trained, generator):
    torch.manual_seed(0)
    model = RecurrentAttention(**SIZES, core="lstm")
    rollout = model(torch.randn(BATCH, 1, 13, 16, generator=generator))
    hybrid_loss(rollout, torch.tensor([0, 1, 2, 0, 1]), reinforce_weight=weight).total.backward()
    assert all(bool(each.grad.any()) == trained for each in model.locator.parameters())
    assert all(each.grad.any() for part in (model.rnn, model.classifier) for each in part.parameters())
