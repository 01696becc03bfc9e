"""What a test says of each class: counted as a naive loop counts, in test.json, and as a table on the terminal."""

import json

import numpy as np
import torch
from helpers import CPU, loader_for_test, loaders_of
from PIL import Image

from config import get_config
from main import main
from trainer import Trainer
from training.checkpoint import load_checkpoint
from training.evaluation import class_accuracies, class_table, confusion_of, evaluate


def test_a_confusion_matrix_is_a_naive_count_with_rows_for_the_labels():
    generator = torch.Generator().manual_seed(0)
    labels, predictions = torch.randint(0, 4, (2, 50), generator=generator)
    counts = np.zeros((5, 5), int)
    for label, prediction in zip(labels, predictions, strict=True):
        counts[label, prediction] += 1
    confusion = confusion_of(labels, predictions, 5)
    np.testing.assert_array_equal(confusion, counts)
    accuracies = class_accuracies(confusion)
    assert accuracies[4] is None  # has no images
    for k in range(4):
        assert accuracies[k] == 100 * int((predictions[labels == k] == k).sum()) / int((labels == k).sum())


def test_a_table_names_what_each_class_is_taken_for():
    table = class_table(np.array([[9, 0, 1], [3, 4, 5], [0, 0, 0]]), ["cat", "a\x1b[31mdog", "owl"])
    assert table.splitlines() == [
        "class          images   right       %   most often taken for",
        "cat                10       9   90.00   owl (1)",
        r"a\x1b[31mdog       12       4   33.33   owl (5)",
        "owl                 0       0",
    ]


def test_predictions_are_those_of_the_images_in_order(run):
    """In batches that do not divide the set, and as the model by itself predicts."""
    config = run("--epochs=1").replace(batch_size=7)
    loaders = loaders_of(config)
    model = Trainer(config, loaders, CPU, load_checkpoint(config.run_dir / "last.pt", to_resume=True)).average
    metrics, predictions = evaluate(model, loaders[1], config)
    assert predictions.shape == (loaders[1].num_images,)
    assert (predictions == loaders[1].examples.labels).sum() == metrics.correct
    _, others = evaluate(model, loaders_of(config.replace(batch_size=64))[1], config)
    assert torch.equal(predictions, others)


def test_a_test_records_and_prints_its_classes(run, capsys):
    config = run("--epochs=1")
    capsys.readouterr()
    run("--is_train=False")
    printed = capsys.readouterr().out.splitlines()
    text = (config.run_dir / "test.json").read_text()
    test = json.loads(text)["tests"]["M=1"]
    confusion = np.array(test["confusion"])
    assert confusion.shape == (10, 10) and confusion.trace() == test["correct"] and confusion.sum() == test["images"]
    assert test["class_acc"] == class_accuracies(confusion) and test["classes"] == [str(k) for k in range(10)]
    assert "[" + ", ".join(map(str, test["confusion"][0])) + "]" in text  # a row is a line
    [header] = [i for i, line in enumerate(printed) if line.startswith("class ")]
    assert "\n".join(printed[header : header + 11]) == class_table(confusion, test["classes"])
    assert printed[header + 11].startswith("[*] Test Acc: ") and len(printed) == header + 12


def test_more_than_twenty_classes_have_no_table(tmp_path, capsys):
    for half in ("train", "test"):
        for name in range(21):
            for i in range(2):
                path = tmp_path / half / f"{name:02}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), 10 * name + i).save(path)
    places = [f"--{name}={tmp_path / name}" for name in ("ckpt_dir", "logs_dir", "plot_dir")]
    flags = ["--task=folder", f"--data_dir={tmp_path}", "--num_workers=0", "--hidden_size=8", *places]
    main(get_config([*flags, "--epochs=1"]))
    capsys.readouterr()
    config = get_config([*flags, "--is_train=False"])
    main(config)
    assert "most often taken for" not in capsys.readouterr().out
    test = json.loads((config.run_dir / "test.json").read_text())["tests"]["M=1"]
    assert np.array(test["confusion"]).shape == (21, 21)
    spec = loaders_of(config.replace(is_train=True))[0].spec
    assert loader_for_test(config, spec).num_images == 42
