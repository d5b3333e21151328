"""CIFAR-10: the official layout, plain, packed and in its archive, against the bytes that were written."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from epsball import data
from epsball.data import Dataset, Origin, cifar10
from epsball.errors import InputError

TRAIN = [f"data_batch_{k}" for k in range(1, 6)]
FOLDER = "cifar-10-batches-bin"


def records(count: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    found = generator.integers(0, 256, (count, 3073), dtype=np.uint8)
    found[:, 0] = generator.integers(0, 10, count)
    return found


@cache
def whole_file(seed: int) -> bytes:
    """10,000 records, equal but for the first few, so that they are soon packed."""
    found = np.tile(records(1, 99), (10_000, 1))
    found[:20] = records(20, seed)
    return found.tobytes()


def write(root: Path, name: str, content: bytes | np.ndarray) -> Path:
    path = root / "cifar10" / FOLDER / name
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


def read(root: Path, split: str = "test") -> Dataset:
    return data.load("cifar10", split=split, data_root=root, download=False)


def check(part: Dataset, expected: np.ndarray) -> None:
    """Each value by its place in the record: label, then red, green and blue planes, row by row."""
    assert tuple(part.x.shape) == (len(expected), 3, 32, 32)
    assert part.target.tolist() == expected[:, 0].tolist()
    for channel, row, column in ((0, 0, 0), (0, 3, 7), (1, 31, 0), (2, 0, 31), (2, 31, 31)):
        place = 1 + 1024 * channel + 32 * row + column
        np.testing.assert_array_equal(part.x[:, channel, row, column].numpy(), np.float32(expected[:, place]) / 255)


# What is read


@pytest.mark.parametrize("suffix", [".bin", ".bin.xz"])
def test_a_whole_test_file(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, f"test_batch{suffix}", whole_file(1))
    part = read(tmp_path)
    check(part.head(20), records(20, 1))
    assert part.source == "CIFAR-10 test set, NOT the official files: 10,000 of 10,000 images"
    assert part.ids.tolist() == list(range(10_000))
    assert part.classes[3] == "cat"
    assert part.bounds == (0.0, 1.0)


@pytest.mark.parametrize("suffix", [".bin", ".bin.xz"])
def test_the_first_records_of_a_file_say_how_many_of_how_many(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, f"test_batch_first30{suffix}", records(30))
    part = read(tmp_path)
    check(part, records(30))
    assert part.source.endswith("30 of 10,000 images")


def test_training_files_that_are_there_are_read_in_official_order(tmp_path: Path) -> None:
    for stem, count, seed in (("data_batch_4", 6, 4), ("data_batch_1", 5, 1), ("data_batch_2", 7, 2)):
        write(tmp_path, f"{stem}_first{count}.bin", records(count, seed))
    part = read(tmp_path, "train")
    check(part, np.concatenate([records(5, 1), records(7, 2), records(6, 4)]))
    assert part.ids.tolist() == [*range(5), *range(10_000, 10_007), *range(30_000, 30_006)]
    assert part.source.endswith("18 of 50,000 images")
    with pytest.raises(InputError, match=r"cifar-10-binary\.tar\.gz not found"):
        read(tmp_path, "test")


def test_the_most_complete_form_of_a_file_is_read(tmp_path: Path) -> None:
    write(tmp_path, "test_batch_first9.bin", records(9, 1))
    write(tmp_path, "test_batch_first11.bin.xz", records(11, 2))
    check(read(tmp_path), records(11, 2))
    write(tmp_path, "test_batch_first11.bin", records(11, 3))
    check(read(tmp_path), records(11, 3))  # nothing to unpack
    write(tmp_path, "test_batch.bin.xz", whole_file(4))
    check(read(tmp_path).head(20), records(20, 4))


def archive_members(seed: int = 0) -> dict[str, bytes]:
    members = {f"{FOLDER}/{stem}.bin": whole_file(seed + place) for place, stem in enumerate(TRAIN)}
    return {f"{FOLDER}/readme.html": b"<html>"} | members | {f"{FOLDER}/test_batch.bin": whole_file(seed + 5)}


@pytest.mark.slow
def test_the_archive_is_read_where_the_files_are_not_complete(tmp_path: Path) -> None:
    write_archive(tmp_path / "cifar10" / cifar10.ARCHIVE, archive_members())
    train = read(tmp_path, "train")
    assert train.source.endswith("NOT the official files: 50,000 of 50,000 images")
    for place in range(5):
        check(train.take(range(10_000 * place, 10_000 * place + 20)), records(20, place))
    write(tmp_path, "test_batch_first4.bin", records(4, 77))
    check(read(tmp_path).head(20), records(20, 5))
    assert not list((tmp_path / "cifar10").glob("*.bin"))


# Downloading, against a real server on this machine


def test_the_archive_is_downloaded_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    served = write_archive(tmp_path / "served" / cifar10.ARCHIVE, {f"{FOLDER}/test_batch.bin": whole_file(5)})
    md5 = {cifar10.ARCHIVE: hashlib.md5(served.read_bytes()).hexdigest()}
    handler = partial(SimpleHTTPRequestHandler, directory=str(served.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    try:
        with pytest.raises(InputError, match="fails its md5 check"):
            cifar10.load("test", tmp_path / "root", True, Origin((url,), cifar10.OFFICIAL.md5))
        assert not (tmp_path / "root").exists()
        part = cifar10.load("test", tmp_path / "root", True, Origin((url,), md5))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    check(part.head(20), records(20, 5))
    assert os.listdir(tmp_path / "root" / "cifar10") == [cifar10.ARCHIVE]
    assert read(tmp_path / "root").digest == part.digest  # the server is gone: nothing is fetched twice


def test_offline_says_where_to_put_the_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"put the official files there.*EPSBALL_DATA") as caught:
        read(tmp_path)
    assert str(tmp_path / "cifar10") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# Damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda raw: raw[:-1],
            "expected 8 images of 3,073 bytes = 24,584 bytes, the file holds 24,583; it is truncated",
        ),
        (lambda raw: raw[:-3073], "it is truncated"),
        (lambda raw: raw + b"\x00", "it has bytes after its end"),
        (lambda raw: b"", "the file holds 0; it is truncated"),
        (lambda raw: raw[:3073] + b"\x0a" + raw[3074:], "labels are 0 to 9, found 10; it is damaged"),
    ],
)
@pytest.mark.parametrize("suffix", [".bin", ".bin.xz"])
def test_damaged_content_is_named(tmp_path: Path, damage: Callable[[bytes], bytes], message: str, suffix: str) -> None:
    path = write(tmp_path, f"data_batch_2_first8{suffix}", damage(records(8).tobytes()))
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, "train")
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_that_ends_between_two_records_is_found_truncated(tmp_path: Path) -> None:
    write(tmp_path, "test_batch.bin", records(7))
    with pytest.raises(InputError, match=r"test_batch\.bin: expected 10,000 images .* it is truncated"):
        read(tmp_path)


@pytest.mark.parametrize("count", [0, 10_001])
def test_a_name_that_promises_what_no_file_holds(tmp_path: Path, count: int) -> None:
    write(tmp_path, f"test_batch_first{count}.bin", b"")
    with pytest.raises(InputError, match=f"1 to 10,000 images, its name says {count:,}"):
        read(tmp_path)


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
def test_damaged_xz_files_are_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = write(tmp_path, "test_batch_first8.bin.xz", records(8))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="not a sound xz file") as caught:
        read(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "fetch it again"),
        (lambda raw: raw[:20], "fetch it again"),
        (lambda raw: b"", "fetch it again"),
        (lambda raw: b"<html>not found</html>", "fetch it again"),
        (lambda raw: raw[:-2000] + bytes(100) + raw[-1900:], "fetch it again"),
    ],
)
def test_damaged_archives_are_named(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    # Noise does not pack, so the damage falls among the pixels.
    member = {f"{FOLDER}/test_batch.bin": records(40).tobytes()}
    path = write_archive(tmp_path / "cifar10" / cifar10.ARCHIVE, member)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({f"{FOLDER}/data_batch_1.bin": b""}, r"test_batch\.bin is not in it"),
        ({"../test_batch.bin": b"", "test_batch.bin": b""}, r"test_batch\.bin is not in it"),
        ({f"{FOLDER}/test_batch.bin": bytes(3073)}, r"tar\.gz: test_batch\.bin: expected 10,000 .* truncated"),
    ],
)
def test_archives_of_something_else(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    write_archive(tmp_path / "cifar10" / cifar10.ARCHIVE, members)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "cifar10" / FOLDER / "test_batch.bin").mkdir(parents=True)
    with pytest.raises(InputError, match=r"test_batch\.bin: cannot be read"):
        read(tmp_path)


# The real files

needs_files = pytest.mark.skipif(
    not (Path(os.environ.get("EPSBALL_DATA") or "absent") / "cifar10").is_dir(),
    reason="EPSBALL_DATA does not point to a folder that holds cifar10/",
)


@needs_files
def test_the_official_test_images() -> None:
    part = data.load("cifar10", download=False)
    assert part.source == f"CIFAR-10 test set, the official files: {len(part):,} of 10,000 images"
    assert part.target[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # cat, ship, ship, airplane, frog, frog, ...
    assert (part.x[0, :, 0, 0] * 255).round().tolist() == [158.0, 112.0, 49.0]


@needs_files
@pytest.mark.slow
def test_the_official_training_images() -> None:
    part = data.load("cifar10", split="train", download=False)
    assert part.source == "CIFAR-10 train set, the official files: 50,000 of 50,000 images"
    assert part.target.bincount().tolist() == [5000] * 10
    mean = (part.x.double().mean((0, 2, 3)) * 255).tolist()
    assert mean == pytest.approx([125.307, 122.950, 113.865], abs=1e-3)
