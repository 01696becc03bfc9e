"""Takes a training step on tensors that only pretend to be a GPU's: reading a value of one, or mixing it with one of
the CPU, is an error there. Leaves out the backward pass, which needs a GPU.

    python tests/pretended_gpu.py '{"canvas_size": 34}'
"""

import gc
import json
import os
import sys

import torch
from helpers import loaders_of
from torch._subclasses.fake_tensor import FakeTensorMode

from config import make_config
from trainer import Trainer


def main(settings: str):
    config = make_config(task="digits", **json.loads(settings))
    torch.Tensor.backward = lambda loss: set_gradients(trainer.model)
    torch.nn.Module.to = lambda module, device: module  # all is made on the pretended GPU
    cuda = torch.device("cuda")
    loaders = loaders_of(config)
    gc.disable()  # torch does not survive it in here
    with FakeTensorMode(allow_non_fake_inputs=True), cuda, torch.no_grad():
        for loader in loaders:
            loader.device, loader.examples = cuda, loader.examples.map(lambda t: torch.empty_like(t, device=cuda))
        trainer = Trainer(config, loaders, cuda)
        losses = trainer.step_from_memory(torch.zeros(32, dtype=torch.long), [None, None], torch.ones(()))
        states = trainer.tensors_of_a_step()
        print(*{tensor.device.type for tensor in (losses, *states)}, flush=True)
    os._exit(0)


def set_gradients(model: torch.nn.Module):
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None


if __name__ == "__main__":
    main(*sys.argv[1:])
