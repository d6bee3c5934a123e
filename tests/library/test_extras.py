"""A bare installation: its features, and its errors for the others."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from pfcore._extras import EXTRAS, optional

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def named(requirements):
    return {re.match(r"[\w.-]+", line)[0].lower() for line in requirements}


BASE = named(PROJECT["dependencies"])


def without(code, *packages):
    """A process in which imports of some packages fail."""
    code = f"import sys\nfor name in {packages!r}: sys.modules[name] = None\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_bare_installation_has_flows_curvature_and_learning_rates():
    done = without(
        "import pfcore, jax.numpy as jnp\n"
        "loss = lambda x: jnp.sum(x**2)\n"
        "pfcore.curvature.hvp(loss, jnp.ones(2), jnp.ones(2))\n"
        "pfcore.integrate(pfcore.flows.principal_flow(loss, 0.1), jnp.ones(2), jnp.arange(2.0))\n"
        "pfcore.learning_rates.dal(), pfcore.losses.full_batch, pfcore.networks.MLP\n"
        "pfcore.stability.regime(0.1, 1.0), pfcore.objectives.banana, pfcore.records.read",
        *EXTRAS,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "package, code",
    [
        ("matplotlib", "import pfcore; pfcore.figures"),
        ("PIL", "from pfcore.figures import redraw"),
        ("sklearn", "import pfcore; pfcore.datasets.load('digits')"),
        ("orbax", "from pfcore.runs.folder import Checkpoints; Checkpoints('there')"),
        ("pooch", "from pfcore._download import download; download((), 'a', 'b', 'c')"),
        (
            "tqdm",
            "import pfcore, jax, jax.numpy as jnp\n"
            "loss = pfcore.curvature.watched(lambda x: jnp.sum(x**2), progress=True)\n"
            "pfcore.curvature.trace(loss, jnp.ones(2), key=jax.random.key(0), num_probes=2)",
        ),
        ("typer", "import pfcore.cli"),
    ],
)
def test_the_error_for_a_missing_package_names_its_extra(package, code):
    done = without(code, package)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert f"{package} is not installed" in last
    assert f'pip install "pfcore[{EXTRAS[package]}]"' in last


def test_experiments_are_listed_without_figures():
    done = without(
        "from pfcore.cli import app\napp(['list'], standalone_mode=False)", "matplotlib", "PIL"
    )
    assert done.returncode == 0 and "edge-of-stability" in done.stdout, done.stderr


def test_errors_for_other_missing_packages_are_unchanged():
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'"), optional():
        import no_such_package  # noqa: F401


def test_every_import_of_the_package_is_installed_by_the_base_or_by_its_extra():
    distributions = metadata.packages_distributions()
    extras = {
        module: named(PROJECT["optional-dependencies"][extra]) for module, extra in EXTRAS.items()
    }
    for path in (ROOT / "pfcore").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [str(node.module)]
            for module in {name.partition(".")[0] for name in modules} - {"pfcore"}:
                if module in sys.stdlib_module_names or module in BROUGHT_BY:
                    continue
                # Several distributions may share the folder of one package.
                found = {name.lower() for name in distributions[module]}
                assert found & (extras[module] if module in EXTRAS else BASE), (path, module)


# Packages installed as dependencies of others: SciPy by JAX, Requests by Pooch.
BROUGHT_BY = {"scipy": "jax", "requests": "pooch"}


def test_the_extra_all_includes_the_others():
    assert PROJECT["optional-dependencies"]["all"] == ["pfcore[runs,figures]"]
