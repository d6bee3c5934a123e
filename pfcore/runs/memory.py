"""Predict how much device memory training a problem takes.

XLA reports how many bytes the arguments, results and temporary arrays of a compiled program take.
Compilation needs only shapes: neither the samples nor the device.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pfcore import datasets
from pfcore._official import manifest
from pfcore.runs import problems
from pfcore.runs.problems import Data, Problem
from pfcore.runs.training import Trainer

# [n_train, n_test] and the shape of a sample, for the sets that need no download.
EMBEDDED = {"breast_cancer": ((455, 114), (30,)), "digits": ((1437, 360), (64,))}
IMAGES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


class Prediction(NamedTuple):
    """Bytes that training takes, including the search for the sharpest directions.

    Attributes:
      num_params: parameters of the network.
      samples: bytes of the training and test samples.
      temporary: bytes of temporary arrays in the program.
      total: bytes in total, including results.
    """

    num_params: int
    samples: int
    temporary: int
    total: int


def shapes(problem: Problem) -> Data:
    """Shapes and dtypes of a problem's samples, as passed to its network."""
    sample: tuple[int, ...]
    if problem.data in EMBEDDED:
        (num_train, num_test), sample = EMBEDDED[problem.data]
    else:
        sizes, sample = manifest.SIZES[problem.data], IMAGES[problem.data]
        num_train, num_test = sizes["train"], sizes["test"]
    divided = problem.split != "official" or problem.classes is not None
    if divided and None in (problem.num_train, problem.num_test):
        raise ValueError(
            f"set num_train and num_test: with split={problem.split!r} and "
            f"classes={problem.classes!r} the number of samples is known from the data only"
        )
    num_train = problem.num_train or num_train
    num_test = problem.num_test or num_test
    if problem.network == "mlp":
        sample = (math.prod(sample),)
    elif len(sample) == 1:
        side = math.isqrt(sample[0])
        sample = (side, side, 1)

    def of(*shape: int, dtype: str) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))

    return Data(
        of(num_train, *sample, dtype=problem.dtype),
        of(num_train, dtype="int32"),
        of(num_test, *sample, dtype=problem.dtype),
        of(num_test, dtype="int32"),
    )


def predict(problem: Problem, *, num_eigenpairs: int = 1) -> Prediction:
    """Memory of one measurement and one step of gradient descent, compiled for this backend.

    Args:
      problem: the problem. Its samples are not loaded.
      num_eigenpairs: the number of largest eigenpairs of the Hessian to follow.

    Returns:
      A `Prediction`, with XLA's own convolutions. Compilers for other backends choose other
      temporary arrays, and a convolution may need additional working memory: take it as a lower
      bound within some tens of percent.
    """
    data = shapes(problem)
    # One sample of each set determines the network's sizes; the label, the number of classes.
    classes = (
        datasets.NUM_CLASSES[problem.data] if problem.classes is None else len(problem.classes)
    )
    one = np.zeros((1, *data.train_inputs.shape[1:]), problem.dtype)
    label = np.full(1, classes - 1, np.int32)
    built = problems.assemble(
        problem,
        datasets.Dataset(problem.data, one, label, one, label),
        seed=0,
        convolutions="native",  # as on a GPU, whatever the local backend
    )
    trainer = Trainer(built, num_eigenpairs=num_eigenpairs)
    key = jax.eval_shape(lambda: jax.random.key(0))
    rate = jax.ShapeDtypeStruct((), jnp.dtype(problem.dtype))
    params = jax.eval_shape(lambda: built.params)
    position = jax.eval_shape(lambda d, p, k: trainer._begin(d, p, k), data, params, key)
    compiled = Trainer._advance.lower(trainer, data, position, rate, 1).compile()
    usage = compiled.memory_analysis()
    if usage is None:
        raise RuntimeError(f"XLA reports no memory usage for {jax.default_backend()}")
    return Prediction(
        num_params=sum(leaf.size for leaf in jax.tree.leaves(params)),
        samples=sum(math.prod(x.shape) * x.dtype.itemsize for x in data),
        temporary=usage.temp_size_in_bytes,
        total=usage.argument_size_in_bytes
        + usage.temp_size_in_bytes
        + usage.output_size_in_bytes
        - usage.alias_size_in_bytes,
    )
