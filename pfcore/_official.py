"""The official files of MNIST, Fashion-MNIST and CIFAR-10: fetched once, checked, read.

Nothing is unpickled and nothing is unpacked to disk.
"""

import gzip
import hashlib
import math
import os
import struct
import sys
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from pfcore._extras import optional

VARIABLE = "PFCORE_DATA"
TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
# Data sets in MNIST's format, and their folders in PFCORE_DATA.
FOLDERS = {"mnist": "mnist", "fashion_mnist": "fashion-mnist"}
# Where a system's own package puts them: Debian's dataset-fashion-mnist.
SYSTEM = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}
# The number of samples in the whole files.
SIZES = {
    "mnist": {"train": 60_000, "test": 10_000},
    "fashion_mnist": {"train": 60_000, "test": 10_000},
    "cifar10": {"train": 50_000, "test": 10_000},
}
ADDRESSES = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion_mnist": (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    "cifar10": ("https://www.cs.toronto.edu/~kriz/",),
}
ARCHIVE, BATCHES = "cifar-10-binary.tar.gz", "cifar-10-batches-bin"
# Of what is downloaded: SHA-256, or the MD5 that Fashion-MNIST's authors publish.
DOWNLOADS = {
    "mnist": {
        "train-images-idx3-ubyte.gz": (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
        ),
        "train-labels-idx1-ubyte.gz": (
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"
        ),
        "t10k-images-idx3-ubyte.gz": (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"
        ),
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
    },
    "cifar10": {
        ARCHIVE: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    },
}
# SHA-256 of the whole files, uncompressed: a file with as many samples is that file or an altered
# one; one with fewer can be its head.
CONTENTS = {
    "mnist": {
        "train-images-idx3-ubyte": (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
        ),
        "train-labels-idx1-ubyte": (
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
        ),
        "t10k-images-idx3-ubyte": (
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
        ),
        "t10k-labels-idx1-ubyte": (
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
        ),
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte": (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte": (
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        "t10k-images-idx3-ubyte": (
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte": (
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    },
    "cifar10": {
        "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    },
}
PREFIXES = {"train": "train", "test": "t10k"}
FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
RECORD = 1 + 3 * 32 * 32
EMBEDDED = "'breast_cancer' and 'digits' need no download"


def read(
    name: str, parts: Sequence[str]
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], str | None]:
    """Images [n, height, width, channels] and labels [n] of each of the parts, all uint8.

    From the folder that PFCORE_DATA names, where it is set, and else from the cache. Beside them a
    remark, where something in the files was left out.
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
        # Record i of each file in turn: heads of the files then hold a head of the samples.
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
    _check_labels(labels, f"{prefix}-labels-idx1-ubyte")
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
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        _check_hash(found, DOWNLOADS["cifar10"][ARCHIVE], archive)
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


def unzip(path: Path) -> bytes:
    """The file's content, decompressed where its name ends in `.gz`."""
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is cut short or damaged ({error}); fetch it again") from error


def unpack(path: Path, files: Sequence[str]) -> dict[str, np.ndarray]:
    """Records of these files of CIFAR-10's archive; whatever else it holds is passed over."""
    records: dict[str, np.ndarray] = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            folder, file = os.path.split(PurePosixPath(member.name))
            if folder != BATCHES or file not in files:
                continue
            stream = archive.extractfile(member) if member.isreg() else None
            if stream is None or file in records:
                raise ValueError(
                    f"{path.name} holds {member.name} twice, or as something else than a file; "
                    "fetch the official archive again"
                )
            records[file] = parse_records(stream.read(), f"{path.name}: {file}")
    for file in files:
        if file not in records:
            raise ValueError(f"{path.name} holds no {BATCHES}/{file}; fetch it again")
    return records


def parse_idx(content: bytes, file: str, shape: tuple[int, ...]) -> np.ndarray:
    """[n, *shape] uint8: a big-endian header (type, number of axes, sizes), then the items."""
    axes = 1 + len(shape)
    header, size = 4 * (1 + axes), math.prod(shape)
    if content[:4] != bytes((0, 0, 8, axes)) or len(content) < header:
        raise ValueError(
            f"{file} is no idx file of bytes with {axes} axes: it holds {len(content):,} bytes and "
            f"starts with {content[:4].hex(' ')!r}; fetch it again"
        )
    announced, *sizes = struct.unpack(f">{axes}I", content[4:header])
    if tuple(sizes) != shape:
        raise ValueError(f"{file} holds items of shape {tuple(sizes)}, not {shape}")
    found = len(content) - header
    if found != announced * size or not announced:
        rest = f" and {found % size} bytes" if found % size else ""
        raise ValueError(
            f"{file} announces {announced:,} items but holds {found // size:,}{rest}; "
            "fetch it again, or give a head its own header"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(announced, *shape)


def parse_records(content: bytes, file: str) -> np.ndarray:
    """[n, 3073] uint8: a label, then 32 × 32 red, green and blue values."""
    if not content or len(content) % RECORD:
        raise ValueError(
            f"{file} is truncated: {len(content):,} bytes are no whole number of {RECORD:,}-byte "
            "records; fetch it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    _check_labels(records[:, 0], file)
    return records


def _check_labels(labels: np.ndarray, file: str) -> None:
    if labels.max() > 9:
        at = int(np.argmax(labels > 9))
        raise ValueError(
            f"{file} is damaged: sample {at:,} has the label {labels[at]}, which is not one of "
            "0 to 9; fetch it again"
        )


def _check_content(content: bytes, count: int, whole: int, path: Path, known: str) -> None:
    if count > whole:
        raise ValueError(
            f"{path} is not the official file: it holds {count:,} samples, more than {whole:,}; "
            "fetch it again"
        )
    if count == whole:
        _check_hash(hashlib.sha256(content).hexdigest(), known, path)


def _check_hash(found: str, known: str, path: Path) -> None:
    if found != known:
        raise ValueError(
            f"{path} is altered: the SHA-256 of its content is {found}, the official file's is "
            f"{known}; fetch it again"
        )


def _missing(path: Path, beside: str = "") -> FileNotFoundError:
    return FileNotFoundError(
        f"{path} does not exist{beside}; {VARIABLE} is set, so nothing is downloaded: put the "
        f"official file there, or unset {VARIABLE} to fetch it. {EMBEDDED}"
    )


def _fetch(name: str, file: str) -> Path:
    """The file in the cache, downloaded if need be; its hash is checked either way."""
    folder = FOLDERS.get(name, "")
    try:
        return download(ADDRESSES[name], file, DOWNLOADS[name][file], folder)
    except (ConnectionError, ValueError) as error:
        place = f"{folder}/{file}".lstrip("/")
        raise type(error)(
            f"{error}. Download it by other means, put it in a folder of your choice as {place}, "
            f"and set the environment variable {VARIABLE} to that folder. {EMBEDDED}"
        ) from error.__cause__


def download(addresses: Sequence[str], file: str, known_hash: str, folder: str = "") -> Path:
    """A file in the cache, downloaded if need be; its hash is checked either way.

    Args:
      addresses: tried one after the other, each ending in "/".
      file: its name, there and here.
      known_hash: of its content, as Pooch takes it: a SHA-256, or "md5:" and an MD5.
      folder: within the cache.

    Raises:
      ConnectionError: no address could be read.
      ValueError: the last one that could be read has something else.
      OSError: the cache cannot be written.
    """
    with optional():
        import pooch
        import requests

    failures: list[str] = []
    kind: type[Exception] = ConnectionError
    cause: Exception | None = None
    for address in addresses:
        try:
            path = pooch.retrieve(
                address + file,
                known_hash=known_hash,
                fname=file,
                path=pooch.os_cache("pfcore") / folder,
                downloader=pooch.HTTPDownloader(
                    progressbar=sys.stderr.isatty(), chunk_size=2**16, timeout=30
                ),
            )
            return Path(path)
        # In this order: some of requests' errors are ValueErrors too, pooch's of the hash is none.
        except requests.RequestException as error:
            cause = error
            if error.response is not None:
                error.response.close()
        except ValueError as error:
            kind, cause = ValueError, error
        failures.append(f"{address}{file}: {cause}")
    raise kind(f"could not fetch {file}. Tried {'; '.join(failures)}") from cause
