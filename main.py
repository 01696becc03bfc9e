"""Trains, continues and tests the Recurrent Attention Model (Mnih et al. 2014).

python main.py                     # train on MNIST
python main.py --resume=True       # go on with it
python main.py --is_train=False    # test the best validation model
"""

import sys

from config import Config, InputError, get_config


def main(config: Config):
    """Trains or tests, as the settings say.

    Raises:
        InputError: a file, a folder or a setting does not fit.
    """
    # Imported here, not above: --help and a typo's message need not wait for torch.
    from data_loader import DataSpec, get_test_loader, get_train_valid_loader, save_samples
    from trainer import Trainer
    from utils import load_checkpoint, pick_device, seed_everything

    seed_everything(config.random_seed)
    device = pick_device(config.use_gpu)
    checkpoint = load_checkpoint(config.checkpoint_path) if config.resume or not config.is_train else None
    if not config.is_train:
        test_loader = get_test_loader(config, DataSpec(**checkpoint["data"]), device)
        return Trainer(config, test_loader, device, checkpoint).test()
    loaders = get_train_valid_loader(config, device)
    if config.show_sample:
        save_samples(loaders[0], config.run_plots / "samples.png")
    Trainer(config, loaders, device, checkpoint).train()


if __name__ == "__main__":
    try:
        main(get_config())
    except InputError as error:
        sys.exit(f"main.py: {error}")
    except KeyboardInterrupt:
        sys.exit("main.py: interrupted; --resume=True goes on after the last complete epoch")
