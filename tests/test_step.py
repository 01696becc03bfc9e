"""Every fast path of the training step ends at the weights of the plain one."""

import pytest
import torch

from config import Config, make_config
from model import RecurrentAttention, draw_first_locations
from training.optim import make_optimizer
from training.step import Objective, should_compile
from utils import has_bfloat16

CONFIG = make_config(batch_size=32, num_glimpses=4, patch_size=8, num_patches=2, glimpse_scale=2)
STEPS = 20
# Of the way that the weights went. Rounding moves some glimpses by a pixel: 0.03 to 0.2 were seen at several rates, and
# 0.44 where the rate was wrong by a third.
BFLOAT16_BOUND = 0.25
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and there is none")


def compiled_objective(model: RecurrentAttention, config: Config, device: str = "cpu") -> Objective:
    """With its step compiled, unless the settings do without."""
    objective = Objective(model, config.training, config.data.batch_size)
    if config.training.compile == "True":
        images = torch.zeros(32, 1, 28, 28, dtype=torch.uint8, device=device)
        labels = torch.zeros(32, dtype=torch.long, device=device)
        objective.compile(images, labels, torch.zeros(32, 2, device=device), torch.zeros(3, 32, 2, device=device))
        assert objective.full_batch_losses != objective.losses  # nothing failed
    return objective


def train(device: str = "cpu", **settings) -> tuple[torch.Tensor, torch.Tensor]:
    """All weights in one row, before and after 20 steps on the same batches."""
    config = CONFIG.replace(**settings)
    torch.manual_seed(0)
    model = RecurrentAttention(**config.model_args(1, 10)).normalize_by([0.5], [0.25]).to(device)
    names = list(model.state_dict())
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().cpu()
    objective, optimizer = compiled_objective(model, config, device), make_optimizer(config.training, model)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        labels = torch.randint(10, (32,), generator=generator)
        images = torch.randn(32, 1, 28, 28, generator=generator) / 4 + (labels / 10)[:, None, None, None]
        images = (64 * images + 128).clamp(0, 255).to(torch.uint8)
        starts = draw_first_locations("random", 32, torch.device("cpu"), generator)
        noise = torch.randn(3, 32, 2, generator=generator)
        losses = objective(*(tensor.to(device) for tensor in (images, labels, starts, noise)))
        assert losses.total.dtype == torch.float32
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert list(model.state_dict()) == names  # clean of what compiling wraps a model in
    after = torch.nn.utils.parameters_to_vector(model.parameters()).detach().cpu()
    return before, after


# Muon makes directions of hardly any gradient as long as all others, and so what rounding does to them.
PLAIN = {"compile": "False", "precision": "float32", "optimizer": "adam"}
# Adam divides each gradient by its own size, so that weights of hardly any gradient go where rounding sends them: in
# bfloat16 only steps proportional to the gradient can be checked.
SGD = {"optimizer": "sgd", "init_lr": 0.02}


@pytest.fixture(scope="module")
def plain():
    return train(**PLAIN)


@pytest.fixture(scope="module")
def plain_sgd():
    return train(**{**PLAIN, **SGD})


def distance(run, plain) -> float:
    """How far apart two runs ended, as a fraction of the way that the plain one went."""
    (_, after), (before, expected) = run, plain
    return ((after - expected).norm() / (expected - before).norm()).item()


def test_compiled_float32_steps_equal_plain_ones_to_rounding(plain):
    assert distance(train(**{**PLAIN, "compile": "True"}), plain) < 0.001


@pytest.mark.parametrize("compile", ["False", pytest.param("True", marks=pytest.mark.slow)])
def test_bfloat16_steps_go_the_way_of_the_plain_ones(compile, plain_sgd):
    off = distance(train(compile=compile, precision="bfloat16", **SGD), plain_sgd)
    assert 0 < off < BFLOAT16_BOUND


@on_gpu
@pytest.mark.parametrize("compile", ["False", "True"])
@pytest.mark.parametrize("precision, bound", [("float32", 0.01), ("bfloat16", BFLOAT16_BOUND)])
def test_steps_on_a_gpu_go_the_way_of_the_plain_ones(compile, precision, bound, plain_sgd):
    assert distance(train("cuda", compile=compile, precision=precision, **SGD), plain_sgd) < bound


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
def test_every_compiled_step_takes_the_noise_it_is_given(device):
    """A captured step that replayed the noise it was captured with would explore one path for ever."""
    config = CONFIG.replace(compile="True", precision="float32")
    model = RecurrentAttention(**config.model_args(1, 10)).to(device)
    objective = compiled_objective(model, config, device)
    batch = torch.randn(32, 1, 28, 28, device=device), torch.zeros(32, dtype=torch.long, device=device)
    starts = torch.zeros(32, 2, device=device)
    noise = torch.randn(3, 32, 2, device=device), torch.randn(3, 32, 2, device=device)
    first, second, again = (objective.full_batch_losses(*batch, starts, n).reinforce.item() for n in (*noise, noise[0]))
    assert first == again != second


def test_a_failing_compiler_falls_back_with_one_line(run, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda function, **options: broken)
    run("--epochs=1", "--compile=True")
    assert capsys.readouterr().out.count("[!] Compiling failed (RuntimeError)") == 1


def test_no_bfloat16_where_the_device_has_none(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not has_bfloat16(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert has_bfloat16(torch.device("cpu"))
    assert not has_bfloat16(torch.device("mps"))


def test_a_step_is_compiled_where_that_pays_or_is_asked_for():
    cpu = torch.device("cpu")
    assert should_compile("auto", cpu, steps=10_000) and not should_compile("auto", cpu, steps=9_999)
    assert not should_compile("auto", torch.device("mps"), steps=10_000)
    assert should_compile("True", cpu, steps=1) and not should_compile("False", cpu, steps=10**6)
