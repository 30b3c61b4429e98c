"""What `demo.data` and `demo.train` need to know of a demo model: its data, network, batches and loss."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

MODULES = {"emoji32": "demo.emoji", "avatars32": "demo.avatars.recipe"}  # demo model: module with its RECIPE


@dataclass(frozen=True)
class Recipe:
    """How a demo model is trained."""

    name: str  # a key of MODULES, and the stem of the weights' file
    weights: Path  # the weights in the repository
    data: Path  # file of the data set, outside git
    load: Callable[[Path], tuple[Tensor, Tensor]]  # -> images [N, 3, 32, 32] in [-1, 1], labels [N, ...]
    network: Callable[[float], nn.Module]  # dropout -> the network, untrained
    augment: Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]  # random changes of a batch
    loss: Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]  # of network, images and labels


def recipe(name: str) -> Recipe:
    """Return a demo model's Recipe.

    Raises:
        KeyError: for a name that is not in MODULES."""
    return importlib.import_module(MODULES[name]).RECIPE
