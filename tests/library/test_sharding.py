"""Losses of data that lie on several devices, and with several processes.

Both need settings that JAX reads when it starts, hence processes of their own.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.library.two_processes import measurements, setting

ROOT = pathlib.Path(__file__).parents[2]
TIMEOUT = 600  # for hanging processes; a loaded machine may need minutes


def start(*arguments: str, devices: int = 1) -> subprocess.Popen:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outputs(*processes: subprocess.Popen) -> list[str]:
    """The output of the processes; raises if one fails or hangs."""
    try:
        printed = [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (out, error) in zip(processes, printed, strict=True):
        assert process.returncode == 0, f"{out[-5000:]}\n{error[-5000:]}"
    return [out for out, _ in printed]


@pytest.mark.slow
def test_eight_devices():
    tests = "tests/library/eight_devices.py"
    outputs(start("-m", "pytest", "-q", "-p", "no:cacheprovider", tests, devices=8))


@pytest.mark.slow
def test_two_processes(x64):
    """Each holds half of the data; both have the same results, those of one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    found = outputs(*(start("-m", "tests.library.two_processes", port, str(i)) for i in range(2)))
    expected = measurements(*setting())
    for lines in found:
        result = json.loads(lines.splitlines()[-1])
        assert jax.tree.structure(result) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
            assert a == pytest.approx(b, rel=1e-12)
    descent = expected["None"]["descent"]
    assert len(descent) == 4 and np.all(np.diff(descent) < 0)
