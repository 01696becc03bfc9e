"""Keeps a run's best model without what only its training needs, to be shipped: a tenth of a second, a megabyte.

python export.py --run_dir=./ckpt/ram_6_8x8_1      # writes models/mnist.pt and its settings, models/mnist.json
python main.py --is_train=False --ckpt_dir=models --task=mnist
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from config import InputError, config_of, params_json
from flags import parse_flags, refusals_told
from runs import load_checkpoint, save_checkpoint, write_whole

OF_TRAINING = {"trained_state": {}, "optim_state": {}, "scheduler_state": {}, "meter": {}, "random_states": []}


@dataclass(frozen=True)
class Export:
    """Keeps a run's best model without what only its training needs."""

    run_dir: str = "./ckpt/ram_6_8x8_1"
    """Folder of the run's checkpoints."""
    models_dir: str = "./models"
    """Folder to write to, over what is there; the files are named after the run's task."""
    half: bool = False
    """Keep the weights in half precision, in half the space; a model reads them back as float32, rounded to 11 bits."""


def main(args: Export) -> Path:
    """Writes the model and its settings, and returns the model's path.

    Raises:
        InputError: there is no such model, or the folder cannot be written.
    """
    source = Path(args.run_dir) / "best.pt"
    checkpoint = load_checkpoint(source)
    config = config_of(checkpoint["config"], source)
    path = Path(args.models_dir) / f"{config.task}.pt"
    weights = checkpoint["model_state"]
    if args.half:
        weights = {name: weight.half() for name, weight in weights.items()}
    save_checkpoint({**checkpoint, **OF_TRAINING, "model_state": weights}, path)
    # The run is of no more concern: a test of the model is named by its task alone.
    shipped = replace(config, is_train=True, resume=False, overwrite=False, run_name="")
    write_whole(path.with_suffix(".json"), params_json(shipped).encode())
    print(f"[*] Model in {path}, epoch {checkpoint['epoch']}, {path.stat().st_size / 1e6:.2f} MB")
    return path


if __name__ == "__main__":
    try:
        with refusals_told():
            main(parse_flags(Export, None, Export(), prog="export.py"))
    except InputError as error:
        sys.exit(f"export.py: {error}")
