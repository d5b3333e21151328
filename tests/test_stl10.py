"""STL-10: the official layout, plain, packed and in its archive, against the bytes that were written."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from epsball import data
from epsball.data import Dataset, Origin, stl10
from epsball.errors import InputError

FOLDER = "stl10_binary"
IMAGE = 27_648


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, IMAGE), dtype=np.uint8)


def labels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 11, count, dtype=np.uint8)


def write(root: Path, name: str, content: bytes | np.ndarray) -> Path:
    path = root / "stl10" / FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = content if isinstance(content, bytes) else content.tobytes()
    path.write_bytes(lzma.compress(raw, preset=0) if name.endswith(".xz") else raw)
    return path


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def archive_members() -> dict[str, bytes]:
    """In the order of the official archive: the unlabelled images stand between test and training set."""
    found = {"class_names.txt": b"airplane\n"}
    for place, split in enumerate(("test", "unlabeled", "train")):
        found[f"{split}_X.bin"] = pixels(3 + place, place).tobytes()
        if split != "unlabeled":
            found[f"{split}_y.bin"] = labels(3 + place, place).tobytes()
    return {f"{FOLDER}/{name}": content for name, content in found.items()}


def read(root: Path, split: str = "test", *, download: bool = False) -> Dataset:
    return data.load("stl10", split=split, data_root=root, download=download)


def check(part: Dataset, expected: np.ndarray) -> None:
    """Each value by its place in the image: red, green and blue planes, column by column."""
    assert tuple(part.x.shape) == (len(expected), 3, 96, 96)
    for channel, row, column in ((0, 0, 0), (0, 3, 7), (1, 95, 0), (2, 0, 95), (2, 95, 95)):
        place = 9216 * channel + 96 * column + row
        np.testing.assert_array_equal(part.x[:, channel, row, column].numpy(), np.float32(expected[:, place]) / 255)
    assert part.ids.tolist() == list(range(len(expected)))
    assert part.bounds == (0.0, 1.0)


# What is read


@pytest.mark.parametrize("suffix", ["", ".xz"])
@pytest.mark.parametrize(("split", "whole"), [("train", "5,000"), ("test", "8,000")])
def test_a_split_with_labels(tmp_path: Path, split: str, whole: str, suffix: str) -> None:
    write(tmp_path, f"{split}_X.bin{suffix}", pixels(12))
    write(tmp_path, f"{split}_y.bin{suffix}", labels(12))
    part = read(tmp_path, split)
    check(part, pixels(12))
    assert part.target.tolist() == (labels(12).astype(int) - 1).tolist()
    assert part.classes[7] == "monkey"
    assert part.split == split
    assert part.source == f"STL-10 {split} set, NOT the official files: 12 of {whole} images"


@pytest.mark.parametrize("suffix", ["", ".xz"])
def test_images_without_labels(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, f"unlabeled_X.bin{suffix}", pixels(7, 3))
    part = read(tmp_path, "unlabeled")
    check(part, pixels(7, 3))
    assert (part.target, part.classes, part.split) == (None, None, "unlabeled")
    assert part.source == "STL-10 images without labels, NOT the official files: 7 of 100,000 images"


def test_images_without_labels_stand_in_for_the_test_images_alone(tmp_path: Path) -> None:
    write(tmp_path, "unlabeled_X.bin", pixels(4, 1))
    part = read(tmp_path, "test", download=True)  # nothing is fetched
    assert (part.split, part.digest) == ("unlabeled", read(tmp_path, "unlabeled").digest)
    with pytest.raises(InputError, match=r"stl10_binary\.tar\.gz not found"):
        read(tmp_path, "train")  # else one would train on what one tests with
    write(tmp_path, "test_X.bin", pixels(5, 2))
    write(tmp_path, "test_y.bin", labels(5, 2))
    assert read(tmp_path, "test").split == "test"


def test_a_plain_file_is_read_rather_than_a_packed_one(tmp_path: Path) -> None:
    write(tmp_path, "unlabeled_X.bin.xz", pixels(4, 1))
    write(tmp_path, "unlabeled_X.bin", pixels(5, 2))
    check(read(tmp_path, "unlabeled"), pixels(5, 2))


def test_the_archive_is_read_where_files_are_absent(tmp_path: Path) -> None:
    write_archive(tmp_path / "stl10" / stl10.ARCHIVE, archive_members())
    write(tmp_path, "test_X.bin", pixels(9, 9))  # its labels are absent: the archive has both
    for place, split in enumerate(("test", "unlabeled", "train")):
        part = read(tmp_path, split)
        check(part, pixels(3 + place, place))
        assert part.split == split
        if split != "unlabeled":
            assert part.target.tolist() == (labels(3 + place, place).astype(int) - 1).tolist()


def test_splits_of_the_catalogue(tmp_path: Path) -> None:
    assert data.entry("stl10").splits == ("train", "test", "unlabeled")
    with pytest.raises(InputError, match="split must be 'train', 'test' or 'unlabeled', got 'validation'"):
        read(tmp_path, "validation")
    with pytest.raises(InputError, match="split must be 'train' or 'test', got 'unlabeled'"):
        data.load("digits", split="unlabeled")


# Downloading, against a real server on this machine


def test_the_archive_is_downloaded_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    served = write_archive(tmp_path / "served" / stl10.ARCHIVE, archive_members())
    md5 = {stl10.ARCHIVE: hashlib.md5(served.read_bytes()).hexdigest()}
    handler = partial(SimpleHTTPRequestHandler, directory=str(served.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    try:
        with pytest.raises(InputError, match="fails its md5 check"):
            stl10.load("test", tmp_path / "root", True, Origin((url,), stl10.OFFICIAL.md5))
        assert not (tmp_path / "root").exists()
        part = stl10.load("test", tmp_path / "root", True, Origin((url,), md5))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    check(part, pixels(3, 0))
    assert os.listdir(tmp_path / "root" / "stl10") == [stl10.ARCHIVE]
    assert read(tmp_path / "root").digest == part.digest  # the server is gone: nothing is fetched twice


@pytest.mark.parametrize("split", stl10.SPLITS)
def test_offline_says_where_to_put_the_files(tmp_path: Path, split: str) -> None:
    with pytest.raises(InputError, match=r"put the official files there.*EPSBALL_DATA") as caught:
        read(tmp_path, split)
    assert str(tmp_path / "stl10") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# Damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-1], r"whole images of 27,648 bytes, the file holds 138,239 bytes = 5\.00 images"),
        (lambda raw: raw[: len(raw) // 2], r"= 2\.50 images; it is truncated or damaged"),
        (lambda raw: raw + b"\x00", "truncated or damaged"),
        (lambda raw: b"", "the file holds 0 bytes"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".xz"])
def test_damaged_images_are_named(tmp_path: Path, damage: Callable[[bytes], bytes], message: str, suffix: str) -> None:
    path = write(tmp_path, f"unlabeled_X.bin{suffix}", damage(pixels(5).tobytes()))
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, "unlabeled")
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (labels(4), "a label byte for each of the 5 images, the file holds 4 bytes"),
        (labels(6), "the file holds 6 bytes"),
        (b"", "the file holds 0 bytes"),
        (b"\x01\x02\x03\x0b\x01", "labels are 1 to 10, found 1 to 11"),
        (b"\x01\x00\x03\x0a\x01", "labels are 1 to 10, found 0 to 10"),
    ],
)
def test_damaged_labels_are_named(tmp_path: Path, content: bytes | np.ndarray, message: str) -> None:
    write(tmp_path, "train_X.bin", pixels(5))
    path = write(tmp_path, "train_y.bin", content)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, "train")
    assert str(caught.value).startswith(f"{path}: ")


def test_images_cut_between_two_of_them_have_too_many_labels(tmp_path: Path) -> None:
    write(tmp_path, "test_X.bin", pixels(5)[:4])
    write(tmp_path, "test_y.bin", labels(5))
    with pytest.raises(InputError, match="each of the 4 images, the file holds 5 bytes"):
        read(tmp_path)


def test_labels_that_are_missing(tmp_path: Path) -> None:
    write(tmp_path, "test_X.bin", pixels(2))
    with pytest.raises(InputError, match=r"test_y\.bin: cannot be read \(No such file"):
        read(tmp_path, download=True)


def test_more_images_than_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stl10.COUNT, "unlabeled", 4)
    write(tmp_path, "unlabeled_X.bin", pixels(5))
    with pytest.raises(InputError, match="expected at most 4 images, the file holds 5"):
        read(tmp_path, "unlabeled")


def test_more_than_fits_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda key: 100 if key == "SC_PHYS_PAGES" else real(key))
    write(tmp_path, "unlabeled_X.bin", pixels(5))
    with pytest.raises(InputError, match=r"unlabeled_X\.bin would take .* GiB, this machine has"):
        read(tmp_path, "unlabeled")


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-10],
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: b"<html>not found</html>",
        lambda raw: raw[:2000] + bytes([raw[2000] ^ 1]) + raw[2001:],
    ],
)
def test_damaged_packed_files_are_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = write(tmp_path, "unlabeled_X.bin.xz", pixels(2))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="not a sound xz file") as caught:
        read(tmp_path, "unlabeled")
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[: len(raw) // 2], lambda raw: raw[:20], lambda raw: b"", lambda raw: b"<html>"]
)
def test_damaged_archives_are_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    archive = write_archive(tmp_path / "stl10" / stl10.ARCHIVE, archive_members())
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(InputError, match="fetch it again") as caught:
        read(tmp_path, "train")
    assert str(caught.value).startswith(f"{archive}: ")


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    members = {f"other/{name.split('/')[1]}": content for name, content in archive_members().items()}
    write_archive(tmp_path / "stl10" / stl10.ARCHIVE, members)
    with pytest.raises(InputError, match=r"stl10_binary/test_X\.bin is not in it"):
        read(tmp_path)


# The real files

needs_files = pytest.mark.skipif(
    not (Path(os.environ.get("EPSBALL_DATA") or "absent") / "stl10").is_dir(),
    reason="EPSBALL_DATA does not point to a folder that holds stl10/",
)


@needs_files
def test_the_official_images_are_upright() -> None:
    part = data.load("stl10", split="unlabeled", download=False)
    assert "the official files" in part.source
    assert "NOT" not in part.source
    x = part.x[:200]
    # Lit from above: over many photographs the upper rows are lighter than the lower, left and right alike.
    light = x.mean((0, 1))
    upper, lower = float(light[:24].mean()), float(light[-24:].mean())
    left, right = float(light[:, :24].mean()), float(light[:, -24:].mean())
    assert upper - lower > 3.0 * abs(left - right)
    assert upper - lower > 0.03
    # Neighbouring pixels are alike along rows and columns: with another shape of plane they would not be.
    assert float((x[..., 1:] - x[..., :-1]).abs().mean()) < 0.06
    assert float((x[..., 1:, :] - x[..., :-1, :]).abs().mean()) < 0.06
    assert float((x[:, 1:] - x[:, :-1]).abs().mean()) < 0.25  # the three planes of an image show the same thing
