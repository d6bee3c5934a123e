"""Formats of the official files: MNIST's idx files and CIFAR-10's records.

Nothing is unpickled, and nothing is extracted to disk.
"""

import gzip
import math
import os
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from pfcore._official.manifest import BATCHES, RECORD


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
    """Records of the given files in CIFAR-10's archive; other members are ignored."""
    records: dict[str, np.ndarray] = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            folder, file = os.path.split(PurePosixPath(member.name))
            if folder != BATCHES or file not in files:
                continue
            stream = archive.extractfile(member) if member.isreg() else None
            if stream is None or file in records:
                raise ValueError(
                    f"{path.name} holds {member.name} twice, or not as a regular file; "
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
            f"{file} is not an idx file of bytes with {axes} axes: it holds {len(content):,} bytes "
            f"and starts with {content[:4].hex(' ')!r}; fetch it again"
        )
    announced, *sizes = struct.unpack(f">{axes}I", content[4:header])
    if tuple(sizes) != shape:
        raise ValueError(f"{file} holds items of shape {tuple(sizes)}, not {shape}")
    size_found = len(content) - header
    if size_found != announced * size or not announced:
        rest = f" and {size_found % size} bytes" if size_found % size else ""
        raise ValueError(
            f"{file} announces {announced:,} items but holds {size_found // size:,}{rest}; "
            "fetch it again, or give a head its own header"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(announced, *shape)


def parse_records(content: bytes, file: str) -> np.ndarray:
    """[n, 3073] uint8: a label, then 32 × 32 red, green and blue values."""
    if not content or len(content) % RECORD:
        raise ValueError(
            f"{file} is truncated: {len(content):,} bytes are not a multiple of {RECORD:,}-byte "
            "records; fetch it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    check_labels(records[:, 0], file)
    return records


def check_labels(labels: np.ndarray, file: str) -> None:
    if labels.max() > 9:
        at = int(np.argmax(labels > 9))
        raise ValueError(
            f"{file} is damaged: sample {at:,} has the label {labels[at]}, which is not one of "
            "0 to 9; fetch it again"
        )
