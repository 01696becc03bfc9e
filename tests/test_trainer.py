"""A run from end to end on the bundled digits: train, resume, stop, test."""

import itertools
import json
import re

import numpy as np
import pytest
import torch
from helpers import assert_same, loader_for_test, loaders_of, metrics_of

from config import get_config, make_config
from images.batches import DataSpec
from main import main
from model import Rollout
from trainer import Trainer
from training.checkpoint import load_checkpoint
from training.cli import InputError
from training.optim import policy_std
from training.step import Objective

LINE = (
    r"train loss: -?\d+\.\d{3} - train acc: [\d.]+ - val loss: -?[\d.]+ - val acc: [\d.]+ - val err: [\d.]+( \[\*\])?$"
)


def test_a_run_prints_the_originals_lines_and_leaves_its_files(run, capsys):
    config = run("--epochs=2")
    lines = [line for line in capsys.readouterr().out.splitlines() if "train loss" in line]
    assert len(lines) == 2 and all(re.search(LINE, line) for line in lines)
    assert lines[0].endswith("[*]")
    assert {path.name for path in config.run_dir.iterdir()} == {
        "last.pt", "best.pt", "params.json", "metrics.jsonl", "environment.json", "lock"}  # fmt: skip
    assert [line["epoch"] for line in metrics_of(config)] == [1, 2]
    assert {path.name for path in config.run_plots.iterdir()} == {
        ".run", "glimpses_1.npz", "glimpses_2.npz", "curves.png"}  # fmt: skip
    run("--is_train=False")
    record = json.loads((config.run_dir / "test.json").read_text())
    assert record["tests"]["M=1"]["images"] == 359
    assert len(record["valid_acc_per_epoch"]) == len(record["seconds_per_epoch"]) == 2
    assert min(record["seconds_per_epoch"]) > 0
    assert record["config"]["random_seed"] == 1 and "torch" in record["trained_with"]["versions"]
    assert re.search(r"\[\*\] Test Acc: \d+/359 \(\d+\.\d\d% - \d+\.\d\d%\)\n$", capsys.readouterr().out)


def test_tests_with_several_m_are_recorded_side_by_side_until_the_model_is_another(run):
    config = run("--epochs=1")
    for m in (1, 3, 3):
        run("--is_train=False", f"--M={m}")
    record = json.loads((config.run_dir / "test.json").read_text())
    assert [(name, test["M"]) for name, test in record["tests"].items()] == [("M=1", 1), ("M=3", 3)]
    run("--epochs=3", "--resume=True")
    run("--is_train=False", "--best=False")
    assert [*json.loads((config.run_dir / "test.json").read_text())["tests"]] == ["M=1"]


def test_a_checkpoint_has_the_originals_keys_and_opens_without_pickle(run):
    config = run("--epochs=1")
    checkpoint = torch.load(config.run_dir / "last.pt", weights_only=True)
    assert {"epoch", "model_state", "optim_state", "best_valid_acc"} <= checkpoint.keys()
    assert checkpoint["epoch"] == 1


def test_best_is_the_epoch_with_the_best_validation(run):
    config = run("--epochs=5", "--init_lr=0.01")
    accuracies = [line["valid"]["acc"] for line in metrics_of(config)]
    best = load_checkpoint(config.run_dir / "best.pt")
    assert best["best_valid_acc"] == max(accuracies)
    assert best["epoch"] == 1 + accuracies.index(max(accuracies))
    loaders = loaders_of(config)
    trainer = Trainer(config, loaders, torch.device("cpu"), best)
    assert trainer.evaluate(loaders[1]).acc == max(accuracies)


@pytest.mark.parametrize(
    "recipe", [["--optimizer=adam"], ["--optimizer=muon"], ["--optimizer=sgd"], ["--lr_patience=0"]]
)
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(run, recipe, monkeypatch):
    straight = run("--epochs=4", "--run_name=straight", *recipe)
    # Stopped after two of four epochs, as by a kill: the schedule must know of four.
    saved = Trainer.save_checkpoint

    def save_and_die(trainer, is_best):
        saved(trainer, is_best)
        if trainer.progress.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Trainer, "save_checkpoint", save_and_die)
        run("--epochs=4", "--run_name=resumed", *recipe)
    resumed = run("--resume=True", "--run_name=resumed")
    assert len(metrics_of(resumed)) == 4
    for a, b in zip(metrics_of(straight), metrics_of(resumed), strict=True):
        assert_same(a["valid"], b["valid"])
        assert_same(a["train"], b["train"])
    for name in ("last.pt", "best.pt"):
        a, b = (load_checkpoint(config.run_dir / name) for config in (straight, resumed))
        for checkpoint in (a, b):
            del checkpoint["config"]
        assert_same(a, b)


def test_resume_continues_to_more_epochs(run, capsys):
    run("--epochs=1")
    config = run("--resume=True", "--epochs=3")
    lines = metrics_of(config)
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    rates = [line["lr"] / config.training.init_lr for line in lines]
    assert rates == pytest.approx([1, 0.75, 0.25])  # (1 + cos(pi t / 3)) / 2
    assert "Epoch 2/3" in capsys.readouterr().out
    assert json.loads((config.run_dir / "params.json").read_text())["epochs"] == 3


def test_sizes_come_from_the_run(run, flags, capsys):
    run("--epochs=1", "--run_name=mine", "--patch_size=5", "--num_patches=2", "--glimpse_scale=3", "--hidden_size=24")
    folders = [flag for flag in flags if "_dir=" in flag]
    main(get_config([*folders, "--task=digits", "--run_name=mine", "--is_train=False"]))
    assert "Test Acc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "advice"), [("--resume=True", "leave the flag out, or train"), ("--is_train=False", "leave the flag out$")]
)
def test_a_flag_that_contradicts_the_run_is_rejected(run, flags, more, advice):
    config = run("--epochs=1")
    before = (config.run_dir / "last.pt").read_bytes()
    with pytest.raises(InputError, match=rf"hidden_size=48 contradicts .*hidden_size=32: {advice}"):
        get_config([*flags, "--hidden_size=48", more])
    assert (config.run_dir / "last.pt").read_bytes() == before


def test_without_validation_all_images_train_and_the_last_epoch_is_tested(run, capsys):
    flags = ["--valid_size=0", "--train_patience=0", "--use_tensorboard=True"]
    whole = run(*flags, "--epochs=3", "--run_name=whole")
    out = capsys.readouterr().out
    assert "[*] Train on 1438 samples, validate on no samples" in out
    assert re.search(r"\nEpoch 3/3 - train loss: [\d.]+ - train acc: [\d.]+\n", out)
    assert [line["valid"] for line in metrics_of(whole)] == [None] * 3
    best, last = (load_checkpoint(whole.run_dir / name) for name in ("best.pt", "last.pt"))
    assert best["epoch"] == 3
    assert_same(best["model_state"], last["model_state"])
    run(*flags, "--epochs=3", "--stop_after_epoch=1")
    resumed = run(*flags, "--epochs=3", "--resume=True")
    assert_same(load_checkpoint(resumed.run_dir / "best.pt")["model_state"], best["model_state"])
    run(*flags, "--epochs=3", "--run_name=whole", "--is_train=False")
    record = json.loads((whole.run_dir / "test.json").read_text())
    assert (record["tests"]["M=1"]["epoch"], record["valid_acc_per_epoch"]) == (3, [])


def test_training_stops_when_validation_no_longer_improves(run):
    config = run("--epochs=40", "--init_lr=1e-12", "--train_patience=2")
    assert len(metrics_of(config)) == 1 + 3  # the first is best; three more do not better it
    assert load_checkpoint(config.run_dir / "last.pt")["epoch"] == 4  # saved before stopping


def test_two_evaluations_agree_to_the_last_digit_whatever_the_batch(run):
    config = run("--epochs=2")
    checkpoint = load_checkpoint(config.run_dir / "best.pt")

    def accuracy(*more):
        folders = [f"--ckpt_dir={config.call.ckpt_dir}", "--task=digits", "--num_glimpses=3", "--use_gpu=False"]
        test = get_config([*folders, "--is_train=False", *more])
        loader = loader_for_test(test, DataSpec(**checkpoint["data"]))
        return Trainer(test, loader, torch.device("cpu"), checkpoint).evaluate(loader)

    assert accuracy() == accuracy()
    assert accuracy().correct == accuracy("--batch_size=7").correct
    assert accuracy("--M=4").loss != accuracy().loss


def test_several_rollouts_average_probabilities_not_their_logarithms(run):
    config = run("--epochs=1", "--M=2")
    loaders = loaders_of(config)
    trainer = Trainer(config, loaders, torch.device("cpu"))
    answers = itertools.cycle([[0.3, 0.69, 0.01], [0.3, 0.05, 0.65]])  # means favour class 1, of logarithms class 0

    class Stub(torch.nn.Module):
        def forward(self, images, starts):
            none = torch.zeros(len(images), 0)
            return Rollout(torch.tensor(next(answers)).log().expand(len(images), 3), starts[:, None], *[none] * 3)

    trainer.average = Stub()
    labels = loaders[1].examples.labels % 3
    loaders[1].examples = loaders[1].examples._replace(labels=labels)
    assert trainer.evaluate(loaders[1]).correct == (labels == 1).sum()


def test_another_data_set_under_the_same_run_is_rejected(run, flags):
    config = run("--epochs=1")
    checkpoint = load_checkpoint(config.run_dir / "last.pt")
    loaders, [mean] = loaders_of(config), checkpoint["data"]["mean"]
    checkpoint["data"]["mean"] = [mean + 0.01]
    with pytest.raises(InputError, match="trained on other images"):
        Trainer(config, loaders, torch.device("cpu"), checkpoint)
    checkpoint["data"]["mean"] = [mean + 1e-5]  # as another device's canvases have
    trainer = Trainer(config, loaders, torch.device("cpu"), checkpoint)
    assert trainer.spec.mean == [mean + 1e-5] and trainer.model.image_mean.item() == pytest.approx(mean + 1e-5)


def test_overwrite_starts_again(run):
    run("--epochs=2")
    config = run("--epochs=1", "--overwrite=True")
    assert [line["epoch"] for line in metrics_of(config)] == [1]
    assert sorted(path.name for path in config.run_plots.iterdir()) == [".run", "curves.png", "glimpses_1.npz"]


def test_tensorboard_holds_every_term(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = run("--epochs=2", "--use_tensorboard=True")
    events = EventAccumulator(str(config.run_logs)).Reload()
    tags = set(events.Tags()["scalars"])
    terms = {f"{name}/{part}" for name in ("loss", "loss_action", "loss_baseline", "loss_reinforce", "acc")
             for part in ("train", "valid")}  # fmt: skip
    assert {*terms, "lr", "images_per_second"} <= tags
    assert [event.step for event in events.Scalars("acc/valid")] == [1, 2]


def test_tensorboard_curves_do_not_overlap_after_a_resume(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = run("--epochs=2", "--use_tensorboard=True")
    after_two = (config.run_dir / "last.pt").read_bytes()
    run("--resume=True", "--epochs=4")
    (config.run_dir / "last.pt").write_bytes(after_two)  # as if the process had been killed before it saved epoch 3
    run("--resume=True", "--epochs=4")
    events = EventAccumulator(str(config.run_logs)).Reload()
    assert [event.step for event in events.Scalars("acc/valid")] == [1, 2, 3, 4]
    assert [line["epoch"] for line in metrics_of(config)] == [1, 2, 3, 4]


def test_show_sample_saves_a_picture(run):
    from PIL import Image

    config = run("--epochs=1", "--show_sample=True")
    picture = Image.open(config.run_plots / "samples.png")
    assert picture.size == (8 * 30 + 2, 8 * 30 + 2)
    assert picture.getextrema()[0][1] > 200


def test_std_falls_from_std_start_to_std_and_stays(run):
    stds = [policy_std(make_config(std_start=0.5, epochs=10).training, 0.1, epoch) for epoch in range(10)]
    assert stds[0] == 0.5
    assert stds[7:] == pytest.approx([0.1, 0.1, 0.1])
    np.testing.assert_allclose(np.diff(stds[:8]), -0.4 / 7)
    assert [policy_std(make_config().training, 0.1, epoch) for epoch in range(30)] == [0.1] * 30
    sooner = make_config(std_start=0.5, std_share=0.2, epochs=10).training
    sooner = [policy_std(sooner, 0.1, epoch) for epoch in range(10)]
    assert sooner[:4] == pytest.approx([0.5, 0.3, 0.1, 0.1])


def test_each_epoch_trains_with_its_own_std_and_learning_rate(run, monkeypatch):
    """Read where a batch's losses are computed."""
    seen = []
    losses = Objective.losses

    def recorded(objective, *batch):
        seen.append(objective.model.std.item())
        return losses(objective, *batch)

    monkeypatch.setattr(Objective, "losses", recorded)
    config = run("--epochs=4", "--std_start=0.5", "--std=0.1", "--std_share=0.5", "--init_lr=0.002")
    assert [*dict.fromkeys(seen)] == pytest.approx([0.5, 0.3, 0.1])
    rates = [line["lr"] for line in metrics_of(config)]
    assert rates == pytest.approx([0.002, 0.001 * (1 + 0.5**0.5), 0.001, 0.001 * (1 - 0.5**0.5)])


def test_what_is_validated_and_kept_is_the_average_of_the_weights(run):
    config = run("--epochs=2", "--ema_decay=0.9")
    checkpoint = load_checkpoint(config.run_dir / "last.pt")
    last, average = checkpoint["trained_state"], checkpoint["model_state"]
    assert all(not torch.equal(last[name], average[name]) for name in last)
    loaders = loaders_of(config)
    trainer = Trainer(config, loaders, torch.device("cpu"), checkpoint)
    assert_same(dict(trainer.average.state_dict()), dict(average))
    assert trainer.evaluate(loaders[1]).acc == metrics_of(config)[-1]["valid"]["acc"]

    plain = load_checkpoint(run("--epochs=2", "--ema_decay=0", "--run_name=plain").run_dir / "last.pt")
    assert_same(dict(plain["model_state"]), dict(plain["trained_state"]))
    assert_same(dict(last), dict(plain["trained_state"]))  # it changes nothing about the training


def test_each_step_moves_the_average_by_the_share_of_its_number(run, monkeypatch):
    """Of a resumed run's, too."""
    counted = []
    monkeypatch.setattr("training.optim.average_weights", lambda average, model, decay, steps: counted.append(steps))
    run("--epochs=1")
    steps = len(counted)
    run("--epochs=2", "--resume=True")
    assert counted == [*range(1, 2 * steps + 1)]


def test_an_epochs_metrics_weigh_each_batch_by_its_images(run, monkeypatch):
    steps = [(torch.full((5,), 0.25), 30), (torch.full((5,), 0.75), 10)]  # losses, and images
    monkeypatch.setattr(Trainer, "take_steps", lambda trainer: iter(steps))
    train = metrics_of(run("--epochs=1"))[0]["train"]
    assert (train["loss"], train["acc"], train["correct"]) == pytest.approx((0.375, 37.5, 15))


def test_gradients_are_clipped(run, monkeypatch):
    norms = []
    step = torch.optim.Adam.step

    def record(optimizer):
        gradients = [p.grad.norm() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.stack(gradients).norm().item())
        return step(optimizer)

    monkeypatch.setattr(torch.optim.Adam, "step", record)
    run("--epochs=1", "--clip_grad_norm=0.1")
    assert 0.09 < max(norms) <= 0.1001


def test_the_environment_is_saved_with_the_run(run):
    config = run("--epochs=1", "--precision=bfloat16")
    environment = json.loads((config.run_dir / "environment.json").read_text())
    assert environment["versions"]["torch"] == str(torch.__version__) and "commit" in environment
    assert (environment["device"], environment["precision"]) == ("cpu", "bfloat16")
