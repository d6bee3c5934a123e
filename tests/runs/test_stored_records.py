"""How `experiments.load_or_run` finds stored records that are not beside the notebook."""

import hashlib
import json
import logging
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pooch
import pytest
import registry
from recompute import configuration

import pfcore
from pfcore import experiments, records
from pfcore.runs import store
from pfcore.runs.durations import duration
from tests.library.test_datasets import nowhere, serve

ROOT = Path(__file__).resolve().parents[2]
BOOK_RECORDS = ROOT / "book" / "records"
NAME = "edge-of-stability"
CHANGES = ("num_steps=3", "num_eigenpairs=1")


def config_of(*changes):
    return experiments.configure(NAME, *CHANGES, *changes)


def record_of(config, seconds=754.0):
    """A record that contains its configuration."""
    info = {"experiment": NAME, "config": records.jsonable(config), "device": "2 CPU cores"}
    info |= {"wall_time_s": seconds, "versions": {"jax": "0"}}
    return records.Record({"loss": np.linspace(1.0, 0.5, 4)}, info)


def put(folder, config, **options):
    """The folder of a stored record of a configuration, named as `load_or_run` names them."""
    wanted = {"experiment": NAME, "config": config}
    path = folder / f"{NAME}-{records.digest(wanted)}"
    records.write(record_of(config, **options), path)
    return path


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """An empty working folder, an empty cache, nothing set: a notebook on Colab."""
    for variable in (store.VARIABLE, "PFCORE_KEEP_RECORDS", "PFCORE_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(store, "_unreachable", set())
    folder = tmp_path / "notebook"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def computed(monkeypatch):
    """The configurations that were computed; nothing is computed here."""
    asked = []
    fresh = records.Record({}, {"fresh": True})
    monkeypatch.setattr(
        experiments, "run", lambda name, config, **_: asked.append((name, config)) or fresh
    )
    return asked


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A folder of two records, listed in the registry."""
    folder = tmp_path / "published" / "book" / "records"
    for number in (1, 2):
        put(folder, config_of(f"seed={number}"))
    listed = store.describe(folder)
    monkeypatch.setattr(store, "registry", lambda: listed)
    return folder


def set_address(monkeypatch, address):
    monkeypatch.setattr(store, "ADDRESS", address)


def test_the_registry_lists_the_books_records_and_their_hashes():
    """If not, pages outside a checkout compute for hours; `make registry` updates it."""
    listed = store.registry()
    assert listed == store.describe(BOOK_RECORDS)
    assert len(listed) == len(list(BOOK_RECORDS.iterdir()))
    for key, entry in listed.items():
        folder = BOOK_RECORDS / entry["folder"]
        assert folder.name.endswith(f"-{key}")
        found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
        assert entry["sha256"] == found


def test_the_stored_registry_is_up_to_date():
    assert registry.REGISTRY.read_text(encoding="utf-8") == registry.text()


def test_the_registry_is_part_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    data = project["tool"]["setuptools"]["package-data"]["pfcore"]
    assert f"runs/{store.REGISTRY}" in data


def test_pooch_is_silent_for_records_alone_whatever_came_before(caplog):
    """Its logger remembers what its level allowed, so the order matters."""
    logger = pooch.get_logger()
    logger.addHandler(caplog.handler)
    try:
        for text in ("a data set", "another data set"):
            logger.info(text)
            with store._without_remarks():
                logger.info("a record")
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.messages == ["a data set", "another data set"]


def test_records_are_downloaded_from_the_tag_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    slug = project["urls"]["Repository"].removeprefix("https://github.com/")
    address = store.ADDRESS.format(version=pfcore.__version__)
    expected = f"https://raw.githubusercontent.com/{slug}/v{project['version']}/book/records/"
    assert address == expected


def test_a_record_beside_the_notebook_is_preferred(alone, computed, published, caplog):
    config = config_of("seed=1")
    put(alone / "records", config, seconds=1.0)
    assert experiments.load_or_run(NAME, config).info["wall_time_s"] == 1.0
    assert computed == [] and caplog.records == []


def test_the_folder_named_by_the_environment_is_second(
    alone, computed, published, tmp_path, monkeypatch
):
    elsewhere = tmp_path / "copied"
    shutil.copytree(published, elsewhere)
    monkeypatch.setenv(store.VARIABLE, str(elsewhere))
    set_address(monkeypatch, nowhere())
    found = experiments.load_or_run(NAME, config_of("seed=2"))
    assert found.info["config"]["seed"] == 2 and computed == []


def test_a_missing_folder_is_named_in_the_error(alone, computed, monkeypatch):
    monkeypatch.setenv(store.VARIABLE, "/no/such/records")
    with pytest.raises(FileNotFoundError, match=r"PFCORE_RECORDS is '/no/such/records'.*unset it"):
        experiments.load_or_run(NAME, config_of())
    assert computed == []


def test_a_listed_record_is_downloaded_once_and_silently(
    alone, computed, published, monkeypatch, caplog, capfd
):
    config = config_of("seed=1")
    name = next(iter(published.glob(f"*-{records.digest(wanted(config))}"))).name
    with serve(published.parents[1]) as (address, asked):
        set_address(monkeypatch, address + "book/records/")
        first, again = experiments.load_or_run(NAME, config), experiments.load_or_run(NAME, config)
    expected = [f"/book/records/{name}/{file}" for file in ("arrays.npz", "record.json")]
    assert sorted(asked) == expected
    assert first.info == again.info and computed == []
    np.testing.assert_array_equal(first["loss"], record_of(config)["loss"])
    assert caplog.records == [] and capfd.readouterr() == ("", "")


def wanted(config):
    return {"experiment": NAME, "config": config}


def test_the_address_contains_the_version(alone, computed, published, monkeypatch):
    folder = published.parents[2] / "site" / f"v{pfcore.__version__}"
    shutil.copytree(published, folder)
    with serve(folder.parent) as (address, asked):
        set_address(monkeypatch, address + "v{version}/")
        experiments.load_or_run(NAME, config_of("seed=1"))
    assert computed == [] and all(f"/v{pfcore.__version__}/" in path for path in asked)


def test_offline_the_record_is_computed_with_a_warning(
    alone, computed, published, monkeypatch, caplog
):
    address = nowhere()
    set_address(monkeypatch, address)
    configs = [config_of("seed=1"), config_of("seed=2")]
    for config in configs:
        assert experiments.load_or_run(NAME, config).info == {"fresh": True}
    assert computed == [(NAME, config) for config in configs]
    first, second = (entry.getMessage() for entry in caplog.records)
    assert re.search(rf"stored record {NAME}-\w{{8}} cannot be read: .*{address}", first)
    assert "computed now; computing the stored one took 12 min 34 s on 2 CPU cores" in first
    assert "PFCORE_RECORDS" in first
    assert "computed now as well; computing the stored one took 12 min 34 s" in second
    assert address not in second
    assert {(e.name, e.levelno) for e in caplog.records} == {("pfcore", logging.WARNING)}


def test_a_record_missing_at_the_address_is_computed(
    alone, computed, published, monkeypatch, caplog
):
    """For example if the tag has not been published."""
    with serve(alone) as (address, asked):
        set_address(monkeypatch, address)
        experiments.load_or_run(NAME, config_of("seed=1"))
        tried = len(asked)
        experiments.load_or_run(NAME, config_of("seed=1"))
    assert len(asked) == tried > 0 and len(computed) == 2
    assert "404" in caplog.records[0].getMessage()


def test_an_altered_record_is_rejected_and_computed(
    alone, computed, published, monkeypatch, caplog
):
    for path in published.glob("*/arrays.npz"):
        path.write_bytes(path.read_bytes() + b"!")
    with serve(published) as (address, _):
        set_address(monkeypatch, address)
        experiments.load_or_run(NAME, config_of("seed=1"))
    assert len(computed) == 1 and "SHA256" in caplog.records[0].getMessage()


def test_an_unwritable_cache_does_not_prevent_the_run(
    alone, computed, published, tmp_path, monkeypatch, caplog
):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with serve(published) as (address, _):
        set_address(monkeypatch, address)
        experiments.load_or_run(NAME, config_of("seed=1"))
    assert len(computed) == 1 and "cannot be read" in caplog.records[0].getMessage()


def test_another_configuration_is_computed_without_a_request(
    alone, computed, published, monkeypatch, caplog
):
    with serve(published) as (address, asked):
        set_address(monkeypatch, address)
        experiments.load_or_run(NAME, config_of("seed=3"))
    assert len(computed) == 1 and asked == [] and caplog.records == []


def test_records_to_be_kept_are_computed(alone, computed, published, monkeypatch):
    """Records are recomputed where they are stored; elsewhere the old ones are used."""
    monkeypatch.setenv("PFCORE_KEEP_RECORDS", "1")
    monkeypatch.setenv(store.VARIABLE, str(published))
    with serve(published) as (address, asked):
        set_address(monkeypatch, address)
        experiments.load_or_run(NAME, config_of("seed=1"))
    assert len(computed) == 1 and asked == []


@pytest.mark.parametrize(
    "seconds, words",
    [(6.3, "6 s"), (754.2, "12 min 34 s"), (11541.5, "3 h 12 min"), (59.6, "1 min")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_the_registry_is_small_enough_for_the_package():
    text = (ROOT / "pfcore" / "runs" / store.REGISTRY).read_text(encoding="utf-8")
    assert len(text) < 50_000 and json.loads(text)


def test_every_stored_configuration_can_be_recomputed():
    """From `record.json` alone, as `make reproduce RECORDS=recompute` does."""
    for folder in sorted(BOOK_RECORDS.iterdir()):
        info = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        config = configuration(info)
        experiment = experiments.EXPERIMENTS[info["experiment"]]
        assert isinstance(config, experiment.Config) and hash(config)
        assert records.jsonable(config) == info["config"]
    with pytest.raises(ValueError, match=r"'gone'.*today's are"):
        configuration(info | {"config": info["config"] | {"gone": 1}})
