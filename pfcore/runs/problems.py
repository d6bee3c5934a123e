"""Training problems: data, network and loss, in a size for a laptop and one for a GPU."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from pfcore import datasets, losses, networks
from pfcore._checks import Loss
from pfcore._trees import Params
from pfcore.networks.layers import check_available


@dataclass(frozen=True)
class Problem:
    """A data set, a network and a loss.

    Attributes:
      data: "digits", "mnist", "fashion_mnist", "cifar10" or "breast_cancer".
      split: "official", or "test" to train and test within the official test file.
      num_train: samples to train on; None for all.
      num_test: samples to test on; None for all.
      classes: labels to keep; None for all.
      network: "mlp", "convnet", "vgg11" or "resnet18".
      widths: widths of the hidden layers ("mlp") or of the blocks ("convnet"), or a single width
        ("vgg11", "resnet18").
      activation: as for `networks.MLP`.
      norm: "none", "group" or "batch".
      kind: kind of loss, "mse" or "cross_entropy".
      microbatch: samples at a time; None for all at once.
      dtype: dtype of parameters and samples, "float32" or "float64" (which needs
        `jax.config.jax_enable_x64`).
    """

    data: str = "digits"
    split: str = "official"
    num_train: int | None = None
    num_test: int | None = None
    classes: tuple[int, ...] | None = None
    network: str = "mlp"
    widths: tuple[int, ...] = (100, 100, 100)
    activation: str = "tanh"
    norm: str = "none"
    kind: str = "mse"
    microbatch: int | None = None
    dtype: str = "float32"


PROBLEMS: dict[str, dict[str, Problem]] = {
    "quick": {
        "digits-mlp": Problem(),
        "mnist-mlp": Problem(data="mnist", split="test", num_train=1000, num_test=1000),
        "fashion-mlp": Problem(
            data="fashion_mnist", num_train=1000, num_test=1000, kind="cross_entropy"
        ),
        "fashion-convnet": Problem(
            data="fashion_mnist",
            num_train=500,
            num_test=500,
            network="convnet",
            widths=(8, 16),
            kind="cross_entropy",
        ),
        "cifar10-convnet": Problem(
            data="cifar10", num_train=500, num_test=500, network="convnet", widths=(8, 16)
        ),
        "cifar10-vgg11": Problem(
            data="cifar10", num_train=250, num_test=500, network="vgg11", widths=(8,)
        ),
        "cifar10-resnet18": Problem(
            data="cifar10", num_train=100, num_test=500, network="resnet18", widths=(8,)
        ),
    },
    "full": {
        "digits-mlp": Problem(),
        "mnist-mlp": Problem(data="mnist", num_train=20_000, widths=(200, 200, 200)),
        "fashion-mlp": Problem(
            data="fashion_mnist",
            widths=(256, 256),
            activation="relu",
            kind="cross_entropy",
            microbatch=10_000,
        ),
        "fashion-convnet": Problem(
            data="fashion_mnist",
            network="convnet",
            widths=(64, 128),
            activation="relu",
            kind="cross_entropy",
            microbatch=1000,
        ),
        "cifar10-convnet": Problem(
            data="cifar10", num_train=10_000, network="convnet", widths=(32, 64), microbatch=5000
        ),
        "cifar10-vgg11": Problem(
            data="cifar10", num_train=10_000, network="vgg11", widths=(64,), microbatch=2500
        ),
        "cifar10-resnet18": Problem(
            data="cifar10",
            num_train=10_000,
            network="resnet18",
            widths=(64,),
            norm="group",
            microbatch=500,
        ),
    },
}


class Data(NamedTuple):
    """Samples on the device, passed to compiled functions as arguments."""

    train_inputs: jax.Array
    train_targets: jax.Array
    test_inputs: jax.Array
    test_targets: jax.Array


@dataclass(frozen=True)
class TrainingProblem:
    """A problem, ready to train. Two that were built from the same settings are equal, and share
    compiled programs.

    Attributes:
      problem: the settings.
      seed: seed of the weights.
      params: initial parameters.
      data: the samples; spread over all devices if there are several and they divide the samples.
      loss: `loss(data)` is the full-batch loss, a function of the parameters.
      accuracy: `accuracy(data)` is the test accuracy, a function of the parameters.
      source: origin of the samples.
      sha256: fingerprint of the samples.
    """

    problem: Problem
    seed: int
    params: Params = field(compare=False)
    data: Data = field(compare=False)
    loss: Callable[[Data], Loss] = field(compare=False)
    accuracy: Callable[[Data], Callable[[Params], jax.Array]] = field(compare=False)
    source: str = field(compare=False)
    sha256: str


def _network(
    problem: Problem, dataset: datasets.Dataset, seed: int, convolutions: str | None
) -> nnx.Module:
    """The network, with as many outputs as classes, or one output for two classes."""
    common: dict[str, Any] = {"activation": problem.activation, "rngs": nnx.Rngs(seed)}
    num_outputs = int(max(dataset.train_targets.max(), dataset.test_targets.max())) + 1
    num_outputs = 1 if num_outputs == 2 else num_outputs
    if problem.network == "mlp":
        if problem.norm != "none":
            raise ValueError(f"the MLP has no normalisation, got norm = {problem.norm!r}")
        return networks.MLP(
            (math.prod(dataset.train_inputs.shape[1:]), *problem.widths, num_outputs), **common
        )
    common |= {"norm": problem.norm, "implementation": convolutions}
    shape = _image_shape(dataset.train_inputs)
    if problem.network == "convnet":
        return networks.ConvNet(shape, problem.widths, num_outputs, **common)
    deep = {"vgg11": networks.VGG11, "resnet18": networks.ResNet18}
    if problem.network not in deep:
        raise ValueError(
            f"unknown network {problem.network!r}; choose one of mlp, convnet, {', '.join(deep)}"
        )
    if len(problem.widths) != 1:
        raise ValueError(f"{problem.network} takes one width, got {problem.widths!r}")
    return deep[problem.network](shape, num_outputs, width=problem.widths[0], **common)


def _image_shape(inputs: np.ndarray) -> tuple[int, int, int]:
    """[height, width, channels]; a row of pixels is a square image of one channel."""
    if inputs.ndim == 4:
        height, width, channels = inputs.shape[1:]
        return height, width, channels
    side = math.isqrt(inputs.shape[1])
    if side**2 != inputs.shape[1]:
        raise ValueError(f"samples of {inputs.shape[1]} features are not images; use network = mlp")
    return (side, side, 1)


def _place(array: np.ndarray) -> jax.Array:
    """On the device, or in equal parts on all of them."""
    devices = jax.device_count()
    if devices == 1:
        return jax.device_put(array)
    mesh = jax.make_mesh((devices,), ("samples",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.P("samples") if len(array) % devices == 0 else jax.P()
    return jax.device_put(array, jax.NamedSharding(mesh, spec))


def build(problem: Problem, *, seed: int) -> TrainingProblem:
    """Load the data and draw the network's initial weights.

    Args:
      problem: the settings.
      seed: seed of the weights.

    Raises:
      ValueError: an unknown network or combination, or float64 while JAX runs in 32 bits.
      FileNotFoundError, OSError: the data cannot be read; the message suggests a fix.
    """
    if problem.dtype not in ("float32", "float64"):
        raise ValueError(f"dtype must be float32 or float64, got {problem.dtype!r}")
    check_available(problem.dtype, "the problem's dtype")
    dataset = datasets.load(
        problem.data,
        dtype=problem.dtype,
        split=problem.split,
        num_train=problem.num_train,
        num_test=problem.num_test,
        classes=problem.classes,
    )
    return assemble(problem, dataset, seed=seed)


def assemble(
    problem: Problem, dataset: datasets.Dataset, *, seed: int, convolutions: str | None = None
) -> TrainingProblem:
    """`build` with samples that are already loaded, and the given convolution implementation."""
    model = _network(problem, dataset, seed, convolutions)
    # Drawn in single precision whatever the problem's dtype: both start from the same weights.
    drawn = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda x: x.astype(problem.dtype), drawn))

    def shaped(inputs: np.ndarray) -> jax.Array:
        shape = (-1,) if problem.network == "mlp" else _image_shape(inputs)
        return _place(inputs.reshape(len(inputs), *shape))

    data = Data(
        shaped(dataset.train_inputs),
        _place(dataset.train_targets),
        shaped(dataset.test_inputs),
        _place(dataset.test_targets),
    )

    def loss(data: Data) -> Loss:
        return losses.full_batch(
            model,
            data.train_inputs,
            data.train_targets,
            kind=problem.kind,
            microbatch=problem.microbatch,
        )[0]

    def accuracy(data: Data) -> Callable[[Params], jax.Array]:
        return losses.accuracy(
            model,
            data.test_inputs,
            data.test_targets,
            microbatch=problem.microbatch,
            threshold=0.5 if problem.kind == "mse" else 0.0,
        )[0]

    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return TrainingProblem(
        problem, seed, params, data, loss, accuracy, dataset.source, dataset.sha256
    )
