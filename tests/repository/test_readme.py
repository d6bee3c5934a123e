"""The README: each snippet runs alone, statements about its results hold, the commands exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# By the heading above them. A diff is not a snippet.
SNIPPETS = {
    section.split("\n", 1)[0]: code
    for section in re.split(r"^##+ ", README, flags=re.MULTILINE)
    for code in re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
}
# What the README says about the results of a snippet, run after it in the same process.
STATED = {
    "Gradient descent and a flow": """
import numpy as np
assert steps.shape == path.params.shape == (21, 2) and path.completed
np.testing.assert_allclose(path.times, h * np.arange(21), rtol=1e-6)
np.testing.assert_array_equal(steps[0], path.params[0])
free = pfcore.integrate(pfcore.flows.principal_flow(loss, h, depth=40), start, path.times)
np.testing.assert_allclose(free.params, path.params, atol=1e-4)
""",
    "The Hessian without the matrix": """
import numpy as np
dense = np.asarray(curvature.spectrum(loss, params))[::-1]
assert pairs.converged.all() and pairs.residuals.max() < 1e-3 * dense[0]
np.testing.assert_allclose(pairs.values, dense[:2], rtol=1e-3)
assert pairs.values.shape == pairs.residuals.shape == (2,)
assert {leaf.shape[0] for leaf in jax.tree.leaves(pairs.vectors)} == {2}
assert abs(density.moment(1) - dense.mean()) < 5 * density.moment_error(1)
assert abs(trace.mean - dense.sum()) < 5 * trace.standard_error
""",
    "From a laptop to a pod": """
import numpy as np
assert all(len(part.sharding.device_set) == 8 for part in data)
assert {shard.data.shape for shard in data[0].addressable_shards} == {(176, 8, 8, 1)}
alone = measure(params, images, digits.train_targets)  # the same lines, on one device
assert all(len(x.sharding.device_set) == 1 for x in jax.tree.leaves(alone))
for actual, expected in zip(jax.tree.leaves((value, sharpness, gradient)), jax.tree.leaves(alone)):
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)
""",
}
# The snippet about many devices gets eight virtual ones on the CPU.
DEVICES = {"From a laptop to a pod": 8}
# Processes that share JAX's compilation cache may find a half-written program; they recompile it.
SILENT = [
    f"ignore:Error {doing} persistent compilation cache entry" for doing in ("reading", "writing")
]


def test_every_snippet_is_checked():
    assert SNIPPETS.keys() == STATED.keys()
    assert len(SNIPPETS) == README.count("```python")


@pytest.mark.slow
@pytest.mark.parametrize("heading", SNIPPETS)
def test_a_snippet_runs_alone(heading, tmp_path):
    """In an empty folder, with every warning an error."""
    script = tmp_path / "snippet.py"
    script.write_text(SNIPPETS[heading] + STATED.get(heading, ""), encoding="utf-8")
    flags = os.environ.get("XLA_FLAGS", "")
    if heading in DEVICES:
        flags += f" --xla_force_host_platform_device_count={DEVICES[heading]}"
    warnings = [option for action in ("error", *SILENT) for option in ("-W", action)]
    ran = subprocess.run(
        [sys.executable, *warnings, str(script)],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-5000:]
    # Warnings that are logged, not raised.
    assert "warning" not in ran.stderr.lower(), ran.stderr[-5000:]


def test_every_make_target_named_exists():
    targets = set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, flags=re.MULTILINE))
    assert {"book", "test", "quick", "test-images"} <= named <= targets


def test_the_cache_is_described_as_the_makefile_sets_it():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    colab = dict(re.findall(r"^%env (\w+)=(\S+)$", README, flags=re.MULTILINE))
    assert colab.pop("JAX_COMPILATION_CACHE_DIR").startswith("/content/")
    settings = re.findall(r"^\s*export (JAX_PERSISTENT\w+) \?= (\S+)$", makefile, re.MULTILINE)
    assert colab == dict(settings) != {}
    for name in ("PFCORE_NO_CACHE", "XDG_CACHE_HOME"):
        assert name in makefile and f"`{name}" in README
