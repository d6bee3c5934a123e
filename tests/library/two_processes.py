"""One of two processes that hold half of the data each.

    python -m tests.library.two_processes PORT INDEX

`test_sharding.py` starts both and compares the numbers that each of them prints.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import pfcore
from pfcore.losses import accuracy, full_batch


def measure(params, direction, model, inputs, targets, microbatch):
    """Results to compare: numbers, and the losses of a run of gradient descent."""
    loss, _ = full_batch(model, inputs, targets, kind="cross_entropy", microbatch=microbatch)
    share, _ = accuracy(model, inputs, targets, microbatch=microbatch)
    gradient = jax.grad(loss)(params)
    product = pfcore.curvature.hvp(loss, params, direction)
    steps = pfcore.gradient_descent(loss, params, 0.1, 3)
    return {
        "loss": loss(params),
        "accuracy": share(params),
        "gradient": squared_norm(gradient),
        "product": squared_norm(product),
        "descent": jax.lax.map(loss, steps),
    }


def squared_norm(tree):
    return sum(jnp.sum(x**2) for x in jax.tree.leaves(tree))


def setting():
    """Parameters, a direction, a model, inputs and targets: the same in every process."""
    rng = np.random.default_rng(0)
    model = pfcore.networks.ConvNet((4, 4, 1), (3,), 3, param_dtype=float, rngs=nnx.Rngs(0))
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
    return params, direction, model, rng.normal(size=(16, 4, 4, 1)), rng.integers(0, 3, 16)


def measurements(params, direction, model, inputs, targets):
    run = jax.jit(measure, static_argnums=(2, 5))
    return {
        str(microbatch): jax.tree.map(
            lambda x: np.asarray(x).tolist(),
            run(params, direction, model, inputs, targets, microbatch),
        )
        for microbatch in (None, 4)
    }


def main(port: str, index: str) -> None:
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(index))
    assert jax.device_count() == 2 and jax.local_device_count() == 1

    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shards = jax.NamedSharding(mesh, jax.P("data"))
    *others, inputs, targets = setting()
    mine = slice(8 * int(index), 8 * int(index) + 8)
    inputs, targets = (
        jax.make_array_from_process_local_data(shards, x[mine]) for x in (inputs, targets)
    )
    assert not inputs.is_fully_addressable
    print(json.dumps(measurements(*others, inputs, targets)))


if __name__ == "__main__":
    main(*sys.argv[1:])
