"""Official files of MNIST, Fashion-MNIST and CIFAR-10: downloaded once, checked and read."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pfcore._download import download
from pfcore._official.formats import check_labels, parse_idx, parse_records, unpack, unzip
from pfcore._official.manifest import (
    ADDRESSES,
    ARCHIVE,
    BATCHES,
    CONTENTS,
    DOWNLOADS,
    EMBEDDED,
    FILES,
    FOLDERS,
    PREFIXES,
    RECORD,
    SIZES,
    SYSTEM,
    TITLES,
    VARIABLE,
)

__all__ = ["only_mnist_test_files", "read"]


def read(
    name: str, parts: Sequence[str]
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], str | None]:
    """Images [n, height, width, channels] and labels [n] of each of the parts, all uint8.

    Read from the folder named by PFCORE_DATA if it is set, else from the cache. The second result
    is a remark if something in the files was left out.
    """
    if name in FOLDERS:
        return {part: _idx_pair(name, part) for part in parts}, None
    contents = _batches([file for part in parts for file in FILES[part]])
    samples, remark = {}, None
    for part in parts:
        records = [contents[file] for file in FILES[part]]
        shortest = min(map(len, records))
        if any(len(batch) > shortest for batch in records):
            remark = f"the training files cut to the shortest, {shortest:,} records each"
        # Take record i of each file in turn: heads of the files then hold a head of the samples.
        mixed = np.stack([batch[:shortest] for batch in records], axis=1).reshape(-1, RECORD)
        images = mixed[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        samples[part] = images, mixed[:, 0]
    return samples, remark


def only_mnist_test_files() -> bool:
    """Whether PFCORE_DATA holds MNIST's two test files and neither of the training files."""
    folder = _folder()
    if folder is None:
        return False
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    train, test = (
        [_find(folder / FOLDERS["mnist"], f"{p}-{kind}") for kind in kinds]
        for p in ("train", "t10k")
    )
    return all(test) and not any(train)


def _folder() -> Path | None:
    folder = os.environ.get(VARIABLE)
    return Path(folder).expanduser() if folder else None


def _find(folder: Path, stem: str) -> Path | None:
    """A file in MNIST's format, compressed or not."""
    paths = (folder / (stem + suffix) for suffix in (".gz", ""))
    return next((path for path in paths if path.is_file()), None)


def _idx_pair(name: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    prefix, whole = PREFIXES[part], SIZES[name][part]
    images = _idx_file(name, f"{prefix}-images-idx3-ubyte", (28, 28), whole)
    labels = _idx_file(name, f"{prefix}-labels-idx1-ubyte", (), whole)
    if len(images) != len(labels):
        raise ValueError(
            f"{TITLES[name]}'s {prefix} files disagree: {len(images):,} images, "
            f"{len(labels):,} labels; cut both after the same sample"
        )
    check_labels(labels, f"{prefix}-labels-idx1-ubyte")
    return images[..., np.newaxis], labels


def _idx_file(name: str, stem: str, shape: tuple[int, ...], whole: int) -> np.ndarray:
    folder = _folder()
    if folder is not None:
        path = _find(folder / FOLDERS[name], stem)
        if path is None:
            raise _missing(folder / FOLDERS[name] / (stem + ".gz"))
    else:
        installed = _find(SYSTEM[name], stem) if name in SYSTEM else None
        path = installed or _fetch(name, stem + ".gz")
    content = unzip(path)
    items = parse_idx(content, str(path), shape)
    _check_content(content, len(items), whole, path, CONTENTS[name][stem])
    return items


def _batches(files: Sequence[str]) -> dict[str, np.ndarray]:
    """CIFAR-10's records [n, 3073], by file."""
    folder = _folder()
    if folder is None:
        return unpack(_fetch("cifar10", ARCHIVE), files)
    batches, archive = folder / BATCHES, folder / ARCHIVE
    if archive.is_file() and not batches.is_dir():
        with archive.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        _check_hash(digest, DOWNLOADS["cifar10"][ARCHIVE], archive)
        return unpack(archive, files)
    records = {}
    for file in files:
        path = batches / file
        if not path.is_file():
            raise _missing(path, "" if batches.is_dir() else f" (nor does {archive})")
        content = path.read_bytes()
        records[file] = parse_records(content, str(path))
        _check_content(content, len(records[file]), 10_000, path, CONTENTS["cifar10"][file])
    return records


def _check_content(content: bytes, count: int, whole: int, path: Path, known: str) -> None:
    if count > whole:
        raise ValueError(
            f"{path} is not the official file: it holds {count:,} samples, more than {whole:,}; "
            "fetch it again"
        )
    if count == whole:
        _check_hash(hashlib.sha256(content).hexdigest(), known, path)


def _check_hash(digest: str, known: str, path: Path) -> None:
    if digest != known:
        raise ValueError(
            f"{path} is altered: the SHA-256 of its content is {digest}, the official file's is "
            f"{known}; fetch it again"
        )


def _missing(path: Path, beside: str = "") -> FileNotFoundError:
    return FileNotFoundError(
        f"{path} does not exist{beside}; {VARIABLE} is set, so nothing is downloaded: put the "
        f"official file there, or unset {VARIABLE} to fetch it. {EMBEDDED}"
    )


def _fetch(name: str, file: str) -> Path:
    """The file in the cache, downloaded if necessary; its hash is checked in either case."""
    folder = FOLDERS.get(name, "")
    try:
        return download(ADDRESSES[name], file, DOWNLOADS[name][file], folder)
    except (ConnectionError, ValueError) as error:
        place = f"{folder}/{file}".lstrip("/")
        raise type(error)(
            f"{error}. Download it by other means, put it in a folder of your choice as {place}, "
            f"and set the environment variable {VARIABLE} to that folder. {EMBEDDED}"
        ) from error.__cause__
