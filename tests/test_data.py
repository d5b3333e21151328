"""Data sets: every format against what was written, every kind of damage against its message."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from epsball import data
from epsball.data import Dataset, Origin, idx, mnist
from epsball.errors import InputError

NEEDS_FILES = {"mnist", "cifar10"}
needs_data = pytest.mark.skipif(not os.environ.get("EPSBALL_DATA"), reason="EPSBALL_DATA does not point to real data")
# Unpacking the 50,000 colour images twice takes more than a few seconds.
MARKS = {name: [needs_data] for name in NEEDS_FILES} | {"cifar10": [needs_data, pytest.mark.slow]}
# stl10 has its own file: not all its images have labels, and seldom are all its splits at hand.
CATALOGUE = [pytest.param(name, marks=MARKS.get(name, ())) for name in data.names() if name != "stl10"]
FILES = {"train": "train", "test": "t10k"}


def random_images(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return images, generator.integers(0, 10, count, dtype=np.uint8)


def write_mnist(folder: Path, images: np.ndarray, labels: np.ndarray, split: str = "test") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{FILES[split]}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    for path, array in zip(paths, (images, labels), strict=True):
        path.write_bytes(gzip.compress(idx.encode(array)))
    return paths


# The catalogue


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_set_keeps_the_contract(name: str) -> None:
    parts = {split: data.load(name, split=split) for split in data.entry(name).splits}
    for split, part in parts.items():
        assert part.name == name
        assert part.split == split
        assert part.x.dtype == torch.float32
        assert part.x.ndim == 4
        assert len(part) == len(part.x) == len(part.target) == len(part.ids)
        assert part.bounds == (0.0, 1.0)
        assert float(part.x.min()) == 0.0
        assert float(part.x.max()) == 1.0
        assert part.target.dtype == part.ids.dtype == torch.int64
        assert sorted(part.target.unique().tolist()) == list(range(len(part.classes)))
        assert f"{len(part):,} of" in part.source
        expected = hashlib.sha256(part.x.numpy().tobytes())
        expected.update(part.target.numpy().tobytes())
        expected = expected.hexdigest()
        assert part.digest == expected
        assert data.load(name, split=split).digest == expected
    images = {split: {hashlib.sha256(image.numpy()).digest() for image in part.x} for split, part in parts.items()}
    assert not images["train"] & images["test"]


def test_digits_are_scikit_learns_and_the_split_is_the_same_everywhere() -> None:
    from sklearn.datasets import load_digits

    raw = load_digits()
    train, test = (data.load("digits", split=split) for split in ("train", "test"))
    for part in (train, test):
        np.testing.assert_array_equal(part.x[:, 0].numpy() * 16, raw.images[part.ids])
        np.testing.assert_array_equal(part.target.numpy(), raw.target[part.ids])
    assert sorted(train.ids.tolist() + test.ids.tolist()) == list(range(1797))
    assert test.target.bincount().tolist() == [50] * 10
    assert test.digest == "81cba83fd5abcf2b4303b1fa4a72914f22c45c2769001ca3523f3c6171f8fe42"


@needs_data
def test_mnist_is_the_official_one() -> None:
    train = data.load("mnist", split="train")
    assert train.target.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert float(train.x.double().mean()) == pytest.approx(0.13066, abs=5e-6)
    test = data.load("mnist", limit=10)
    assert tuple(test.x.shape) == (10, 1, 28, 28)
    assert test.target.tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert "the official files: 10,000 of 10,000 images; the first 10" in test.source
    assert "NOT" not in test.source


def test_head_take_and_limit() -> None:
    full = data.load("digits")
    head = data.load("digits", limit=7)
    assert len(head) == 7
    torch.testing.assert_close(head.x, full.x[:7])
    assert head.digest == full.head(7).digest != full.digest
    assert len(full.head(10_000)) == len(full)
    picked = full.take([5, 3, 5])
    assert picked.ids.tolist() == [int(full.ids[i]) for i in (5, 3, 5)]
    torch.testing.assert_close(picked.x, full.x[[5, 3, 5]])
    assert picked.target.tolist() == full.target[[5, 3, 5]].tolist()
    assert "3 of these" in picked.source
    assert len(full.take([])) == 0


@pytest.mark.parametrize("index", [[500], [-1], [0.5], [[1]], torch.tensor([True])])
def test_take_refuses_what_is_not_a_position(index: object) -> None:
    with pytest.raises(InputError, match="positions must"):
        data.load("digits").take(index)


@pytest.mark.parametrize("limit", [0, -3, 2.0, True])
def test_limit_must_be_a_positive_integer(limit: object) -> None:
    with pytest.raises(InputError, match="limit must be an integer of at least 1"):
        data.load("digits", limit=limit)


@pytest.mark.parametrize("n", [0, -1, 1.5])
def test_head_must_be_a_positive_integer(n: object) -> None:
    with pytest.raises(InputError, match="at least 1"):
        data.load("digits").head(n)


def test_unknown_names_and_paths(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown data set 'digit'; did you mean 'digits'"):
        data.load("digit")
    with pytest.raises(InputError, match=r"unknown data set 'minst'.*'mnist'"):
        data.entry("minst")
    for name in ("no/such/folder", "absent.npz", tmp_path / "absent"):
        with pytest.raises(InputError, match="does not exist"):
            data.load(name)
    with pytest.raises(InputError, match="split must be 'train' or 'test', got 'validation'"):
        data.load("digits", split="validation")
    text = tmp_path / "x.csv"
    text.write_text("1,2")
    with pytest.raises(InputError, match=r"must be a folder of images or end in \.npz"):
        data.load(text)


# The idx format and MNIST's files


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6)))
def test_idx_round_trip(array: np.ndarray) -> None:
    raw = idx.encode(array)
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    assert raw == bytes([0, 0, 8, array.ndim]) + sizes + bytes(array.ravel().tolist())
    parsed = idx.parse(raw, "file", array.ndim)
    assert parsed.shape == array.shape
    np.testing.assert_array_equal(parsed, array)


@given(hnp.arrays(np.uint8, (2, 3)), st.integers(0, 17))
def test_idx_refuses_every_truncation(array: np.ndarray, kept: int) -> None:
    raw = idx.encode(array)
    assert len(raw) == 18
    with pytest.raises(InputError, match=r"file: .*it is truncated"):
        idx.parse(raw[:kept], "file", 2)


def test_idx_refuses_other_magic_numbers_and_trailing_bytes() -> None:
    raw = idx.encode(np.zeros((2, 3), np.uint8))
    with pytest.raises(InputError, match=r"expected the idx magic number 2051.*found 2050"):
        idx.parse(raw, "file", 3)
    with pytest.raises(InputError, match="magic number 2050"):
        idx.parse(b"\x00\x00\x0d\x02" + raw[4:], "file", 2)
    with pytest.raises(InputError, match="2 x 3 = 6 bytes of data, the file holds 7; it has bytes after its end"):
        idx.parse(raw + b"\x00", "file", 2)


def test_mnist_files_of_ones_own_are_read_and_said_to_be_so(tmp_path: Path) -> None:
    images, labels = random_images(20)
    write_mnist(tmp_path / "mnist", images, labels)
    part = data.load("mnist", data_root=tmp_path, download=False)
    np.testing.assert_allclose(part.x[:, 0].numpy(), images / 255.0, rtol=1e-7)
    np.testing.assert_array_equal(part.target.numpy(), labels)
    assert "NOT the official files" in part.source


def test_data_root_argument_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seed in (("argument", 1), ("environment", 2)):
        write_mnist(tmp_path / name / "mnist", *random_images(3, seed))
    monkeypatch.setenv("EPSBALL_DATA", str(tmp_path / "environment"))
    environment = data.load("mnist", download=False)
    argument = data.load("mnist", data_root=tmp_path / "argument", download=False)
    np.testing.assert_array_equal(environment.target.numpy(), random_images(3, 2)[1])
    np.testing.assert_array_equal(argument.target.numpy(), random_images(3, 1)[1])


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "truncated"),
        (lambda raw: raw[:-3], "truncated"),
        (lambda raw: raw[:-6] + bytes([raw[-6] ^ 1]) + raw[-5:], "not a sound gzip file"),  # the checksum
        (lambda raw: b"<html>not found</html>", "not a sound gzip file"),
        (lambda raw: b"", "truncated"),
        (lambda raw: gzip.compress(gzip.decompress(raw)[:-1]), "truncated"),
        (lambda raw: gzip.compress(b"\x00\x00\x08\x09" + gzip.decompress(raw)[4:]), "magic number"),
    ],
)
def test_damaged_mnist_files_are_named(tmp_path: Path, which: int, damage: object, message: str) -> None:
    path = write_mnist(tmp_path / "mnist", *random_images(5))[which]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        data.load("mnist", data_root=tmp_path, download=False)
    assert path.name in str(caught.value)


def test_mnist_files_that_do_not_fit_together(tmp_path: Path) -> None:
    images, labels = random_images(5)
    for bad_images, bad_labels, message in (
        (images, labels[:4], "5 images and .* 4 labels"),
        (images[:, :27], labels, "28 x 28, these are 27 x 28"),
        (images, labels + np.uint8(20), "labels are 0 to 9, found 2"),
        (images[:0], labels[:0], "0 images"),
    ):
        write_mnist(tmp_path / "mnist", bad_images, bad_labels)
        with pytest.raises(InputError, match=message):
            data.load("mnist", data_root=tmp_path, download=False)


# Downloading, against a real server on this machine


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")


def nobody_listens() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/"


def origin(folder: Path, *urls: str) -> Origin:
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    return Origin(base_urls=urls, md5=md5)


def test_absent_files_are_downloaded_from_the_first_mirror_that_works(tmp_path: Path, no_proxy: None) -> None:
    images, labels = random_images(8)
    write_mnist(tmp_path / "served", images, labels)
    (tmp_path / "empty").mkdir()
    root = tmp_path / "root"
    with serve(tmp_path / "empty") as empty, serve(tmp_path / "served") as good:
        source = origin(tmp_path / "served", nobody_listens(), empty, good)
        part = mnist.load("test", root, True, source)
    np.testing.assert_array_equal(part.target.numpy(), labels)
    assert "NOT" not in part.source
    assert sorted(os.listdir(root / "mnist")) == sorted(os.listdir(tmp_path / "served"))
    again = mnist.load("test", root, True, source)  # the server is gone: nothing is fetched twice
    assert again.digest == part.digest


def test_a_corrupted_download_is_refused_and_leaves_nothing(tmp_path: Path, no_proxy: None) -> None:
    images, _ = write_mnist(tmp_path / "served", *random_images(8))
    source = origin(tmp_path / "served")
    images.write_bytes(images.read_bytes()[:-1] + b"?")
    root = tmp_path / "root"
    with serve(tmp_path / "served") as url, pytest.raises(InputError, match="fails its md5 check") as caught:
        mnist.load("test", root, True, Origin((url,), source.md5))
    assert images.name in str(caught.value)
    assert not root.exists()
    (root / "mnist").mkdir(parents=True)
    with serve(tmp_path / "served") as url, pytest.raises(InputError, match="fails its md5 check"):
        mnist.load("test", root, True, Origin((url,), source.md5))
    assert list((root / "mnist").iterdir()) == []  # a folder that was there stays


def test_a_corrupted_mirror_is_passed_over(tmp_path: Path, no_proxy: None) -> None:
    for folder in ("bad", "good"):
        write_mnist(tmp_path / folder, *random_images(8))
    source = origin(tmp_path / "good")
    for path in (tmp_path / "bad").iterdir():
        path.write_bytes(b"captive portal")
    with serve(tmp_path / "bad") as bad, serve(tmp_path / "good") as good:
        part = mnist.load("test", tmp_path / "root", True, Origin((bad, good), source.md5))
    assert len(part) == 8


def test_offline_says_where_to_put_the_files(tmp_path: Path, no_proxy: None) -> None:
    offline = Origin((nobody_listens(),), mnist.OFFICIAL.md5)
    with pytest.raises(InputError, match=r"put the official files there.*EPSBALL_DATA.*ConnectionError") as caught:
        mnist.load("test", tmp_path, True, offline)
    assert str(tmp_path / "mnist") in str(caught.value)
    with pytest.raises(InputError, match=r"put the official files there.*allow the download"):
        data.load("mnist", data_root=tmp_path / "elsewhere", download=False)
    assert not (tmp_path / "elsewhere").exists()


def test_a_root_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="cannot create the folder"):
        mnist.load("test", tmp_path / "file", True, mnist.OFFICIAL)


# Tensors in .npz and .pt


def write_tensors(path: Path, **arrays: np.ndarray) -> Path:
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    else:
        torch.save({key: torch.from_numpy(value) for key, value in arrays.items()}, path)
    return path


@pytest.fixture(params=["data.npz", "data.pt"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


def rows(*shape: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)


def test_tensor_files_with_classes_and_with_reference_outputs(file: Path) -> None:
    images, labels, outputs = rows(6, 3, 4, 5), np.array([2, 0, 1, 1, 0, 5], np.uint8), rows(6, 2, 3, low=-9)
    part = data.load(write_tensors(file, x=images, y=labels))
    assert (part.split, part.bounds, part.classes) == ("all", (0.0, 1.0), None)
    np.testing.assert_array_equal(part.x.numpy(), images)
    assert part.target.dtype == torch.int64
    assert part.target.tolist() == labels.tolist()
    part = data.load(write_tensors(file, x=images.astype(np.float64) * 2, y=outputs.astype(np.float64)), limit=4)
    assert part.bounds is None  # brighter than 1: these are not images in [0, 1]
    assert part.x.dtype == part.target.dtype == torch.float32
    np.testing.assert_array_equal(part.target.numpy(), outputs[:4])
    part = data.load(write_tensors(file, x=rows(6, 9)))
    assert part.target is None
    assert part.bounds is None
    assert part.digest == hashlib.sha256(rows(6, 9).tobytes()).hexdigest()


def test_a_tuple_in_a_pt_file(tmp_path: Path) -> None:
    x, y = torch.from_numpy(rows(3, 2)), torch.tensor([0, 1, 1])
    torch.save((x, y), tmp_path / "pair.pt")
    part = data.load(tmp_path / "pair.pt")
    torch.testing.assert_close(part.x, x)
    assert part.target.tolist() == [0, 1, 1]


def test_big_endian_arrays(tmp_path: Path) -> None:
    x = rows(3, 2)
    part = data.load(write_tensors(tmp_path / "big.npz", x=x.astype(">f4")))
    np.testing.assert_array_equal(part.x.numpy(), x)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 1, 4, 4), np.uint8)}, "x must be floating, got uint8.*divide by 255"),
        ({"x": np.zeros((2, 4), np.int64)}, "x must be floating, got torch.int64"),
        ({"x": np.zeros((2, 4), bool)}, "x must be floating, got torch.bool"),
        ({"x": np.zeros((2, 4), np.complex64)}, "x must be floating, got torch.complex64"),
        ({"x": np.zeros(4, np.float32)}, r"x must be \(samples, \*shape\)"),
        ({"x": np.zeros((0, 4), np.float32)}, "not empty"),
        ({"x": np.array([[1.0], [np.nan], [np.inf]])}, "2 of 3 samples hold NaN or infinite values.*sample 1"),
        ({"x": np.array([[1.0], [1e300]])}, "finite in float32"),
        ({"z": np.zeros((2, 4), np.float32)}, "x"),
        ({"x": np.zeros((2, 4), np.float32), "y": np.zeros(3, np.int64)}, "one entry for each of the 2 samples"),
        ({"x": np.zeros((2, 4), np.float32), "y": np.array(3)}, "one entry for each"),
        ({"x": np.zeros((2, 4), np.float32), "y": np.zeros((2, 1), np.int64)}, "y must be class indices"),
        ({"x": np.zeros((2, 4), np.float32), "y": np.zeros(2, bool)}, "y must be class indices"),
        ({"x": np.zeros((2, 4), np.float32), "y": np.array([0, -1])}, "at least 0, found -1"),
        ({"x": np.zeros((2, 4), np.float32), "y": np.array([0, np.nan])}, "y must be finite"),
    ],
)
def test_bad_tensors_are_refused(file: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        data.load(write_tensors(file, **arrays))
    assert file.name in str(caught.value)


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"PK\x03\x04 junk"])
def test_damaged_tensor_files(file: Path, damage: object) -> None:
    write_tensors(file, x=rows(50, 7))
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match="not a sound") as caught:
        data.load(file)
    assert file.name in str(caught.value)


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.marker,))


def test_no_code_in_a_file_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    torch.save({"x": Evil(marker)}, tmp_path / "evil.pt")
    np.savez(tmp_path / "evil.npz", x=np.array([Evil(marker)], dtype=object))
    marker.unlink(missing_ok=True)
    for name in ("evil.pt", "evil.npz"):
        with pytest.raises(InputError, match="not a sound"):
            data.load(tmp_path / name)
    assert not marker.exists()


def test_files_that_would_not_fit_in_memory(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1, 1).expand(2**30, 2**20)}, tmp_path / "wide.pt")
    with pytest.raises(InputError, match="GiB"):
        data.load(tmp_path / "wide.pt")


# Folders of images


def write_image(path: Path, array: np.ndarray, mode: str | None = None) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path)
    return array


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_a_flat_folder_in_sorted_order(tmp_path: Path) -> None:
    arrays = {name: write_image(tmp_path / name, noise(5, 7, 3, seed=i)) for i, name in enumerate(["b.png", "a.bmp"])}
    (tmp_path / ".hidden").write_text("skipped")
    part = data.load(tmp_path)
    assert tuple(part.x.shape) == (2, 3, 5, 7)
    assert part.target is None
    assert (part.classes, part.bounds, part.split) == (None, (0.0, 1.0), "all")
    for row, name in zip(part.x, ("a.bmp", "b.png"), strict=True):
        np.testing.assert_allclose(row.numpy(), arrays[name].transpose(2, 0, 1) / 255.0, rtol=1e-6)
    limited = data.load(tmp_path, limit=1)
    assert "1 of 2 images" in limited.source
    torch.testing.assert_close(limited.x, part.x[:1])


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/2.png", "cat/1.png"):
        write_image(tmp_path / name, noise(4, 4, seed=len(name)))
    part = data.load(tmp_path)
    assert part.classes == ("cat", "dog")
    assert part.target.tolist() == [0, 0, 1]
    assert tuple(part.x.shape) == (3, 1, 4, 4)


def test_train_and_test_sub_folders_are_splits(tmp_path: Path) -> None:
    for index, name in enumerate(("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png", "test/b/2.png")):
        write_image(tmp_path / name, noise(4, 4, seed=index))
    train, test = (data.load(tmp_path, split=split) for split in ("train", "test"))
    assert (len(train), len(test), train.split, test.split) == (2, 3, "train", "test")
    assert test.classes == ("a", "b")
    np.testing.assert_allclose(test.x[0, 0].numpy(), noise(4, 4, seed=2) / 255.0, rtol=1e-6)


def test_modes_that_lose_nothing_are_converted(tmp_path: Path) -> None:
    opaque = np.dstack([noise(4, 4, 3), np.full((4, 4), 255, np.uint8)])
    write_image(tmp_path / "rgba" / "a.png", opaque)
    np.testing.assert_allclose(
        data.load(tmp_path / "rgba").x[0].numpy(), opaque[..., :3].transpose(2, 0, 1) / 255.0, rtol=1e-6
    )
    bits = noise(4, 4) > 127
    write_image(tmp_path / "bits" / "a.png", bits)
    np.testing.assert_array_equal(data.load(tmp_path / "bits").x[0, 0].numpy(), bits.astype(np.float32))
    write_image(tmp_path / "palette" / "a.png", np.zeros((4, 4, 3), np.uint8), "P")
    assert tuple(data.load(tmp_path / "palette").x.shape) == (1, 3, 4, 4)


def test_images_that_disagree_are_both_named(tmp_path: Path) -> None:
    write_image(tmp_path / "size" / "a.png", noise(4, 6))
    write_image(tmp_path / "size" / "b.png", noise(4, 5))
    with pytest.raises(InputError, match=r"a\.png is 6 x 4 grey, .*b\.png is 5 x 4 grey"):
        data.load(tmp_path / "size")
    write_image(tmp_path / "mode" / "a.png", noise(4, 6))
    write_image(tmp_path / "mode" / "b.png", noise(4, 6, 3))
    with pytest.raises(InputError, match=r"a\.png is 6 x 4 grey, .*b\.png is 6 x 4 RGB"):
        data.load(tmp_path / "mode")


def png_header(width: int, height: int) -> bytes:
    """Build a PNG that declares this size and holds next to nothing."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [10_000, 60_000])  # where Pillow only warns, and where it raises
def test_decompression_bombs_are_refused(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    with pytest.raises(InputError, match=r"bomb\.png: too many pixels"):
        data.load(tmp_path)


def test_files_that_are_not_plain_images_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "text" / "a.png", noise(4, 4))
    (tmp_path / "text" / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"notes\.txt: cannot be read as an image"):
        data.load(tmp_path / "text")
    write_image(tmp_path / "cut" / "a.png", noise(40, 40, 3))
    raw = (tmp_path / "cut" / "a.png").read_bytes()
    (tmp_path / "cut" / "a.png").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match=r"a\.png: cannot be read as an image"):
        data.load(tmp_path / "cut")
    write_image(tmp_path / "deep" / "a.png", noise(4, 4).astype(np.uint16) * 256)
    with pytest.raises(InputError, match="expected 8-bit grey or RGB without transparency, got mode I;16"):
        data.load(tmp_path / "deep")
    write_image(tmp_path / "clear" / "a.png", noise(4, 4, 4))
    with pytest.raises(InputError, match="without transparency, got mode RGBA"):
        data.load(tmp_path / "clear")
    (tmp_path / "film").mkdir()
    frames = [Image.fromarray(noise(4, 4, seed=seed)) for seed in range(3)]
    frames[0].save(tmp_path / "film" / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="holds 3 frames"):
        data.load(tmp_path / "film")


def test_folders_that_are_laid_out_otherwise_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        data.load(tmp_path / "empty")
    write_image(tmp_path / "mixed" / "cat" / "a.png", noise(4, 4))
    write_image(tmp_path / "mixed" / "stray.png", noise(4, 4))
    with pytest.raises(InputError, match=r"also the file stray\.png"):
        data.load(tmp_path / "mixed")
    write_image(tmp_path / "nested" / "cat" / "tabby" / "a.png", noise(4, 4))
    with pytest.raises(InputError, match="one level is read"):
        data.load(tmp_path / "nested")
    write_image(tmp_path / "hollow" / "cat" / "a.png", noise(4, 4))
    (tmp_path / "hollow" / "dog").mkdir()
    with pytest.raises(InputError, match="dog: the class folder holds no images"):
        data.load(tmp_path / "hollow")


def test_links_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "outside" / "secret.png"
    write_image(secret, noise(4, 4))
    for name, target in (("file", secret), ("folder", secret.parent), ("nowhere", tmp_path / "absent")):
        inside = tmp_path / name
        write_image(inside / "cat" / "a.png", noise(4, 4))
        link = inside / "dog" if name == "folder" else inside / "cat" / "link.png"
        link.symlink_to(target)
        with pytest.raises(InputError, match=r"a link that leads (out of|nowhere)"):
            data.load(inside)
    fine = tmp_path / "fine"
    write_image(fine / "a.png", noise(4, 4))
    (fine / "b.png").symlink_to(fine / "a.png")
    assert len(data.load(fine)) == 2


def test_a_dataset_is_frozen() -> None:
    part = data.load("digits", limit=2)
    assert isinstance(part, Dataset)
    with pytest.raises(AttributeError):
        part.name = "other"
