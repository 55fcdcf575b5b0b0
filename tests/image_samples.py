"""What the tests of image files share: samples of every kind, and files that Pillow cannot write."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msformer_fast import InputError, phantom
from msformer_fast.images import write_png

RNG = np.random.default_rng(7)
GREY8 = RNG.integers(0, 256, (40, 50), dtype=np.uint8)
RGB8 = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (40, 50), dtype=np.uint16)
RGB16 = RNG.integers(0, 65536, (40, 50, 3), dtype=np.uint16)
ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]


def unit(array: np.ndarray) -> np.ndarray:
    scaled = array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max)
    return np.repeat(scaled[:, :, None], 3, axis=2) if scaled.ndim == 2 else scaled


def lesion_pairs(folder: Path, names: list[str]) -> Path:
    """A folder with drawn lesions of these names in ``images``, and their masks in ``masks``."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for seed, name in enumerate(names):
        picture, truth = phantom.lesion((60, 66), seed=seed)
        write_png(folder / "images" / f"{name}.png", (picture * 255).astype(np.uint8))
        write_png(folder / "masks" / f"{name}.png", truth)
    return folder


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def png16(path: Path, array: np.ndarray, interlaced: bool = False) -> Path:
    """A 16-bit PNG of 1 to 4 channels, which Pillow cannot write; every row with the filter Sub or Up."""
    array = array.reshape(*array.shape[:2], -1)
    height, width, channels = array.shape
    step = 2 * channels
    rows = []
    for top, left, down, right in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        part = array[top::down, left::right].astype(">u2")
        data = part.view(np.uint8).reshape(part.shape[0], -1) if part.size else np.empty((0, 0), np.uint8)
        above = np.zeros(data.shape[1:], np.uint8)
        for index, row in enumerate(data):
            before = np.concatenate([np.zeros(step, np.uint8), row[:-step]]) if index % 2 else above
            rows.append(bytes([1 + (index + 1) % 2]) + (row - before).tobytes())
            above = row

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 16, [0, 4, 2, 6][channels - 1], 0, 0, int(interlaced))
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def refused(call, *arguments, match: str, **options) -> None:
    with pytest.raises(InputError, match=match) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
