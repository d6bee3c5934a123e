"""How the benchmarks time what they compare."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

# In single precision: products of matrices too, which a GPU computes in TF32 unless told otherwise.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax

Calls = dict[str, Callable[[], Any]]


def timed(calls: Calls, repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each call, and what it returned at first.

    Calls take turns, forwards and backwards, so that noise hits all alike.
    """
    results = {name: jax.block_until_ready(call()) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeats):
        for name in list(calls)[:: 1 if i % 2 == 0 else -1]:
            start = time.perf_counter()
            jax.block_until_ready(calls[name]())
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}, results


def print_machine(*packages: str) -> None:
    """The device, the precision of its matrix products, and versions."""
    device = jax.local_devices()[0].device_kind
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", *packages))
    print(f"{device}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {platform.system()}")
    print(f"matrix products: {precision}; Python {platform.python_version()}, {versions}")
