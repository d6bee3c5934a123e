"""Imported modules; each test runs in a separate process, since imports persist."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import pfcore


def loaded_after(code: str) -> set[str]:
    """Modules of a fresh interpreter that has run `code`."""
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_pfcore_loads_no_submodule():
    loaded = loaded_after("import pfcore")
    assert not loaded & {"jax", "diffrax", "flax", "sklearn", "matplotlib", "orbax", "pfcore.flows"}


def test_curvature_loads_neither_diffrax_nor_flax():
    loaded = loaded_after("import pfcore; pfcore.curvature.hvp")
    assert "jax" in loaded
    assert not loaded & {"diffrax", "flax", "sklearn", "matplotlib", "pfcore.experiments"}


@pytest.mark.parametrize("name", pfcore.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(pfcore, name) is vars(pfcore)[name]
    assert name in dir(pfcore)


def test_no_module_has_the_name_of_a_function_beside_it():
    """Otherwise the meaning of `pfcore.learning_rates.dal` would depend on earlier imports."""
    import pfcore._integrate

    assert callable(pfcore.integrate) and callable(pfcore.gradient_descent)
    for package in ("curvature", "figures", "flows", "learning_rates"):
        loaded = importlib.import_module(f"pfcore.{package}")
        modules = {module.name for module in pkgutil.iter_modules(loaded.__path__)}
        assert not modules & set(loaded.__all__), package


def test_unknown_name_raises_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'flow'"):
        _ = pfcore.flow


OLD_PATHS = [
    "pfcore.experiments.comparing.interval",
    "pfcore.experiments.methods.read",
    "pfcore.experiments.obtain",
    "pfcore.experiments.problems.build",
    "pfcore.experiments.running.execute",
    "pfcore.experiments.settings.replace",
    "pfcore.experiments.stored.registry",
    "pfcore.experiments.training.Trainer",
    "pfcore.records.Checkpoints",
    "pfcore.records.begin",
    "pfcore.records.claim",
    "pfcore.records.digest",
    "pfcore.records.jsonable",
    "pfcore.records.provenance",
]


@pytest.mark.parametrize("path", OLD_PATHS)
def test_old_import_paths_still_work(path):
    module, name = path.rsplit(".", 1)
    assert callable(getattr(importlib.import_module(module), name))


def test_drawing_a_figure_loads_no_experiment():
    loaded = loaded_after("import pfcore; pfcore.figures.use_style")
    assert "matplotlib" in loaded
    assert not {name for name in loaded if name.startswith("pfcore.experiments")}
    assert not loaded & {"flax", "orbax", "pfcore.datasets", "pfcore.networks"}
