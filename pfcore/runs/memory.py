"""How much memory of a device a problem takes to train, before anything is trained.

XLA says of a compiled program how many bytes its arguments, results and temporary arrays take.
Compiling needs shapes alone, so neither the samples nor the device have to be there.
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

# [n_train, n_test] and the shape of a sample, of the sets that need no file.
EMBEDDED = {"breast_cancer": ((455, 114), (30,)), "digits": ((1437, 360), (64,))}
IMAGES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


class Prediction(NamedTuple):
    """Bytes that training takes, with the sharpest directions followed.

    Attributes:
      num_params: parameters of the network.
      samples: bytes of the training and test samples.
      temporary: bytes of the arrays within the program.
      total: bytes in all, results included.
    """

    num_params: int
    samples: int
    temporary: int
    total: int


def shapes(problem: Problem) -> Data:
    """Shapes and dtypes of a problem's samples, as its network is given them."""
    sample: tuple[int, ...]
    if problem.data in EMBEDDED:
        (num_train, num_test), sample = EMBEDDED[problem.data]
    else:
        sizes, sample = manifest.SIZES[problem.data], IMAGES[problem.data]
        num_train, num_test = sizes["train"], sizes["test"]
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
    """What one measurement and one step of gradient descent take, as compiled for this backend.

    Args:
      problem: what is trained. Its samples are not loaded.
      num_eigenpairs: how many of the Hessian's largest are followed.

    Returns:
      A `Prediction`, with XLA's own convolutions. Compilers for other backends choose other
      temporary arrays, and a convolution may ask for working memory besides: take it as a lower
      bound within some tens of percent.
    """
    data = shapes(problem)
    # One sample of each set tells the network's sizes; the labels tell the number of classes.
    classes = (
        datasets.NUM_CLASSES[problem.data] if problem.classes is None else len(problem.classes)
    )
    one = np.zeros((1, *data.train_inputs.shape[1:]), problem.dtype)
    label = np.full(1, classes - 1, np.int32)
    built = problems.assemble(
        problem,
        datasets.Dataset(problem.data, one, label, one, label),
        seed=0,
        convolutions="native",  # as on a GPU, whatever compiles here
    )
    trainer = Trainer(built, num_eigenpairs=num_eigenpairs)
    key = jax.eval_shape(lambda: jax.random.key(0))
    rate = jax.ShapeDtypeStruct((), jnp.dtype(problem.dtype))
    params = jax.eval_shape(lambda: built.params)
    position = jax.eval_shape(lambda d, p, k: trainer._begin(d, p, k), data, params, key)
    compiled = Trainer._advance.lower(trainer, data, position, rate, 1).compile()
    found = compiled.memory_analysis()
    if found is None:
        raise RuntimeError(f"XLA does not say for {jax.default_backend()} what a program takes")
    return Prediction(
        num_params=sum(leaf.size for leaf in jax.tree.leaves(params)),
        samples=sum(math.prod(x.shape) * x.dtype.itemsize for x in data),
        temporary=found.temp_size_in_bytes,
        total=found.argument_size_in_bytes
        + found.temp_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes,
    )
