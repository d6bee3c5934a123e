"""Networks used in the book, as Flax NNX modules."""

from flax import nnx

from pfcore._trees import num_entries
from pfcore.networks.convolutional import VGG11, ConvNet
from pfcore.networks.layers import ACTIVATIONS, NORMS, Conv, Norm, uses_batch_statistics
from pfcore.networks.mlp import MLP
from pfcore.networks.residual import ResNet18

__all__ = [
    "MLP",
    "VGG11",
    "Conv",
    "ConvNet",
    "Norm",
    "ResNet18",
    "num_params",
    "uses_batch_statistics",
]


def num_params(model: nnx.Module) -> int:
    """The number of parameters of `model`."""
    return num_entries(nnx.state(model, nnx.Param))
