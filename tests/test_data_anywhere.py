"""Data from anywhere: Parquet, Python code, URLs, and every kind of bad file, named or left out."""

import io
import json
import os
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from epsball import data
from epsball.cli.app import app
from epsball.data import remote
from epsball.errors import InputError
from test_data import noise, png_header, write_image

pa = pytest.importorskip("pyarrow", reason="pyarrow is an optional extra")
import pyarrow.parquet as pq  # noqa: E402


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


# Bad files


def bad_folder(root):
    """Two classes of good images, and one of every kind of bad file among them."""
    arrays = {}
    for place in range(12):
        name = f"{'cat' if place < 6 else 'dog'}/{place:02}.png"
        arrays[name] = write_image(root / name, noise(8, 8, 3, seed=place))
    jpeg = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(jpeg, "JPEG")
    (root / "cat" / "cut.jpg").write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    (root / "cat" / "zero.png").write_bytes(b"")
    (root / "cat" / "text.png").write_text("<script>alert(1)</script>")
    (root / "dog" / "bomb.png").write_bytes(png_header(20_000, 20_000))
    write_image(root / "dog" / "channels.png", noise(8, 8))
    write_image(root / "dog" / "0size.png", noise(9, 8, 3))
    (root / "dog" / "size.png").symlink_to(root / "dog" / "0size.png")  # inside: followed, and of another size
    secret = root.parent / "secret.png"
    write_image(secret, noise(8, 8, 3))
    (root / "cat" / "link.png").symlink_to(secret)
    return arrays


REASONS = {
    "cat/cut.jpg": "cannot be read as an image",
    "cat/zero.png": "not an image of a known format",
    "cat/text.png": "not an image of a known format",
    "cat/link.png": "a link that leads out of",
    "dog/bomb.png": "too many pixels",
    "dog/channels.png": "is 8 x 8 grey, most images are 8 x 8 RGB",
    "dog/0size.png": "is 8 x 9 RGB, most images are 8 x 8 RGB",
    "dog/size.png": "is 8 x 9 RGB",
}


def test_bad_files_are_left_out_and_listed_with_their_reasons(tmp_path):
    root = tmp_path / "images"
    arrays = bad_folder(root)
    part = data.load(root, skip_bad=True)
    for row, name in zip(part.x, sorted(arrays), strict=True):
        np.testing.assert_allclose(row.numpy(), arrays[name].transpose(2, 0, 1) / 255.0, rtol=1e-6)
    assert part.target.tolist() == [0] * 6 + [1] * 6
    assert part.classes == ("cat", "dog")
    found = {os.path.relpath(bad.file, root): bad.reason for bad in part.skipped}
    assert found.keys() == REASONS.keys()
    for name, reason in REASONS.items():
        assert reason in found[name], name
    # A link out of the folder is no file of it; all others count.
    files = sorted([*arrays, *(name for name in REASONS if name != "cat/link.png")])
    assert [files[i] for i in part.ids.tolist()] == sorted(arrays)
    assert part.total == len(part) + len(part.skipped) == 20
    assert "12 of 20 images, 8 left out" in part.source


@pytest.mark.parametrize("name", REASONS)
def test_each_bad_file_is_named_without_skipping(tmp_path, name):
    root = tmp_path / "images"
    bad_folder(root)
    for other in REASONS:
        if other != name and not (name == "dog/size.png" and other == "dog/0size.png"):
            (root / other).unlink()
    with pytest.raises(InputError, match=rf"{name.rpartition('/')[2].lstrip('0')}.*--skip-bad") as caught:
        data.load(root)
    assert "\n" not in str(caught.value)


def test_a_first_image_of_another_size_does_not_leave_out_the_others(tmp_path):
    for place in range(4):
        write_image(tmp_path / f"{place}.png", noise(5 if place == 0 else 4, 4))
    part = data.load(tmp_path, skip_bad=True)
    assert part.ids.tolist() == [1, 2, 3]
    assert data.load(tmp_path, skip_bad=True, limit=3).ids.tolist() == [1, 2]


def test_a_folder_without_a_good_file_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the 1 samples can be read, the first is .*a\.png"):
        data.load(tmp_path, skip_bad=True)


@pytest.mark.parametrize("target", ["outside", "nowhere"])
def test_a_bad_class_folder_never_renumbers_the_classes(tmp_path, target):
    root = tmp_path / "images"
    for label in ("b", "c"):
        write_image(root / label / "0.png", noise(4, 4, 3))
    write_image(tmp_path / "outside" / "0.png", noise(4, 4, 3))
    (root / "a").symlink_to(tmp_path / target)
    for skip in (False, True):
        with pytest.raises(InputError, match=r"images/a: a link that leads .*numbered by their folders"):
            data.load(root, skip_bad=skip)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    write_image(tmp_path / "a.png", noise(4, 4))
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"b\.png: not a regular file"):
        data.load(tmp_path)
    assert len(data.load(tmp_path, skip_bad=True)) == 1


def test_samples_that_are_not_finite(tmp_path):
    x = np.random.default_rng(0).random((5, 3)).astype("float32")
    y = np.arange(5)
    x[1, 2], x[3, 0] = np.nan, np.inf
    np.savez(tmp_path / "d.npz", x=x, y=y)
    torch.save({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, tmp_path / "d.pt")
    for name in ("d.npz", "d.pt"):
        with pytest.raises(InputError, match="first is sample 1"):
            data.load(tmp_path / name)
        part = data.load(tmp_path / name, skip_bad=True)
        assert part.target.tolist() == part.ids.tolist() == [0, 2, 4]
        assert [bad.file.rpartition(" ")[2] for bad in part.skipped] == ["1", "3"]


@pytest.mark.slow
def test_two_thousand_files_with_every_kind_of_bad_one(tmp_path):
    root = tmp_path / "images"
    bad_folder(root)
    for place in range(2000 - 20):
        write_image(root / ("cat" if place % 2 else "dog") / f"x{place:04}.png", noise(8, 8, 3, seed=place))
    assert len(data.load(root, skip_bad=True)) == 2000 - 8


# A run: exit codes, manifest, page and terminal

NET = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
"""


def evaluate(folder, out, *words, net):
    net.write_text(NET)
    command = ("evaluate", "--model", f"{net}:make", "--data", folder, "--attacks", "fgsm", "--eps", "0.1")
    return call(*command, "--out", out, *words)


def test_a_run_leaves_bad_files_out_only_when_asked(tmp_path):
    bad_folder(tmp_path / "images")
    out, net = tmp_path / "run", tmp_path / "net.py"
    result = evaluate(tmp_path / "images", out, net=net)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert not out.exists()
    result = evaluate(tmp_path / "images", out, "--skip-bad", net=net)
    assert result.exit_code == 0, result.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    assert {os.path.basename(bad["file"]) for bad in manifest["data"]["skipped"]} == {
        os.path.basename(name) for name in REASONS
    }
    assert all(bad["reason"] for bad in manifest["data"]["skipped"])
    assert (manifest["data"]["count"], manifest["data"]["of"]) == (12, 20)
    assert "--skip-bad" in manifest["command"]
    assert "8 samples could not be read" in result.stdout
    assert "8 samples could not be read" in (out / "report.html").read_text()


HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\u202e$x$'\"&"


def test_hostile_labels_and_file_names_are_text(tmp_path):
    root = tmp_path / "images"
    for label in (HOSTILE, "plain"):
        for place in range(3):
            write_image(root / label / f"{place}.png", noise(8, 8, 3, seed=place + len(label)))
    (root / "plain" / f"{HOSTILE}.png").write_text("hello")
    (root / "plain" / "..%2f..%2fetc.png").write_text("hello")
    out = tmp_path / "run"
    result = evaluate(root, out, "--skip-bad", net=tmp_path / "net.py")
    assert result.exit_code == 0, result.stderr
    page = (out / "report.html").read_text()
    for text in (result.stdout, result.stderr, page):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    assert HOSTILE in json.loads((out / "manifest.json").read_text())["data"]["classes"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "net.py", "run"]


def test_hostile_labels_of_a_table_are_text(tmp_path):
    column = pa.array([{"bytes": png(noise(8, 8, 3, seed=i)), "path": "../../etc/passwd"} for i in range(4)])
    table = pa.table({"image": column, "label": [HOSTILE, "b", HOSTILE, "b"]})
    pq.write_table(table, tmp_path / "d.parquet")
    out = tmp_path / "run"
    result = evaluate(tmp_path / "d.parquet", out, net=tmp_path / "net.py")
    assert result.exit_code == 0, result.stderr
    page = (out / "report.html").read_text()
    assert "<img src=x" not in page
    assert "\x1b" not in page + result.stdout


# Parquet


def image_table(count=5, names=("cat", "<b>dog")):
    arrays = [noise(6, 4, 3, seed=i) for i in range(count)]
    column = pa.array([{"bytes": png(array), "path": f"{i}.png"} for i, array in enumerate(arrays)])
    table = pa.table({"image": column, "label": pa.array([i % 2 for i in range(count)])})
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
    meta = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return table.replace_schema_metadata(meta), arrays


def test_images_as_hugging_face_writes_them(tmp_path):
    table, arrays = image_table()
    pq.write_table(table, tmp_path / "d.parquet")
    part = data.load(tmp_path / "d.parquet")
    np.testing.assert_allclose(part.x.numpy(), np.stack(arrays).transpose(0, 3, 1, 2) / 255.0, rtol=1e-6)
    assert part.target.tolist() == [0, 1, 0, 1, 0]
    assert (part.classes, part.bounds, part.total) == (("cat", "<b>dog"), (0.0, 1.0), 5)
    few = data.load(tmp_path / "d.parquet", limit=2)
    assert (len(few), few.total) == (2, 5)
    raw = table.set_column(0, "picture", pa.array([png(array) for array in arrays]))
    pq.write_table(raw, tmp_path / "raw.parquet")
    torch.testing.assert_close(data.load(tmp_path / "raw.parquet").x, part.x)


def test_shards_in_a_folder_are_one_set(tmp_path):
    table, _ = image_table(7)
    for place, (start, stop) in enumerate(((0, 3), (3, 4), (4, 7))):
        pq.write_table(table.slice(start, stop - start), tmp_path / f"train-{place}.parquet")
    pq.write_table(table, tmp_path.parent / "whole.parquet")
    whole = data.load(tmp_path.parent / "whole.parquet")
    assert data.load(tmp_path).digest == whole.digest
    few = data.load(tmp_path, limit=5)
    assert (len(few), few.total) == (5, 7)
    assert torch.equal(few.x, whole.x[:5])


def test_feature_columns(tmp_path):
    rng = np.random.default_rng(0)
    columns = {name: rng.random(6) for name in ("a", "b")}
    table = pa.table(columns | {"n": np.arange(6), "name": list("uvwxyz"), "target": rng.random(6)})
    pq.write_table(table, tmp_path / "t.parquet")
    part = data.load(tmp_path / "t.parquet")
    expected = np.stack([*columns.values(), np.arange(6.0)], 1).astype("float32")
    np.testing.assert_array_equal(part.x.numpy(), expected)
    np.testing.assert_array_equal(part.target.numpy(), table["target"].to_numpy().astype("float32")[:, None])
    chosen = data.load(tmp_path / "t.parquet", x_columns=("b",), y_columns=("name",))
    np.testing.assert_array_equal(chosen.x.numpy(), expected[:, 1:2])
    assert (chosen.classes, chosen.target.tolist()) == (tuple("uvwxyz"), list(range(6)))
    heads = data.load(tmp_path / "t.parquet", x_columns=("n",), y_columns=("a", "b"))
    np.testing.assert_array_equal(heads.target.numpy(), expected[:, :2])
    for options, match in (
        ({"x_columns": ("c",)}, "no column 'c'; there are 'a'"),
        ({"x_columns": ("a", "name")}, "'name' holds string, expected numbers"),
        ({"y_columns": ("name", "a")}, "'name' holds string, expected numbers as y"),
    ):
        with pytest.raises(InputError, match=match):
            data.load(tmp_path / "t.parquet", **options)
    np.savez(tmp_path / "x.npz", x=expected)
    with pytest.raises(InputError, match="expected a Parquet file for x_columns"):
        data.load(tmp_path / "x.npz", x_columns=("a",))


def test_lists_and_missing_values(tmp_path):
    series = pa.array([[1.0, 2.0], None, [5.0, 6.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"series": series, "label": [0, 1, 1]}), tmp_path / "l.parquet")
    with pytest.raises(InputError, match="NaN"):
        data.load(tmp_path / "l.parquet")
    part = data.load(tmp_path / "l.parquet", skip_bad=True)
    assert part.x.tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert part.target.tolist() == [0, 1]
    uneven = pa.array([[1.0, 2.0], [3.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"series": uneven}), tmp_path / "u.parquet")
    with pytest.raises(InputError, match="all of one length"):
        data.load(tmp_path / "u.parquet")
    pq.write_table(pa.table({"a": [1.0, 2.0], "label": pa.array([1, None])}), tmp_path / "m.parquet")
    with pytest.raises(InputError, match="'label' misses 1 values"):
        data.load(tmp_path / "m.parquet")


def test_bad_rows_of_a_table(tmp_path):
    table, _ = image_table(6)
    rows = table["image"].to_pylist()
    rows[1] = {"bytes": b"nonsense", "path": None}
    rows[2] = {"bytes": None, "path": str(tmp_path / "secret.png")}  # a path is not followed
    write_image(tmp_path / "secret.png", noise(6, 4, 3))
    rows[4] = {"bytes": png(noise(6, 4)), "path": None}
    pq.write_table(table.set_column(0, "image", pa.array(rows)), tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"d\.parquet, column image, row 1: cannot be read as an image"):
        data.load(tmp_path / "d.parquet")
    part = data.load(tmp_path / "d.parquet", skip_bad=True)
    assert part.ids.tolist() == [0, 3, 5]
    assert part.target.tolist() == [0, 1, 1]
    assert "holds no bytes" in part.skipped[1].reason
    assert [bad.file.rpartition(" ")[2] for bad in part.skipped] == ["1", "2", "4"]


@pytest.mark.parametrize("dictionary", [False, True])
def test_text_classes_do_not_depend_on_the_limit(tmp_path, dictionary):
    text = ["cat", "cat", "dog", "ant"]
    column = pa.DictionaryArray.from_arrays([1, 1, 0, 2], ["dog", "cat", "ant"]) if dictionary else pa.array(text)
    table = pa.table({"a": np.arange(4.0), "label": column})
    pq.write_table(table, tmp_path / "d.parquet")
    (tmp_path / "shards").mkdir()
    for place in range(4):
        pq.write_table(table.slice(place, 1), tmp_path / "shards" / f"{place}.parquet")
    classes = ("dog", "cat", "ant") if dictionary else ("ant", "cat", "dog")
    for name in ("d.parquet", "shards"):
        for limit in (None, 1, 3):
            part = data.load(tmp_path / name, limit=limit)
            assert part.classes == classes
            assert [classes[i] for i in part.target.tolist()] == text[:limit]


def test_files_named_by_split_are_read_by_split(tmp_path):
    for place, name in enumerate(("train-0", "train-1", "test-0", "validation-0")):
        pq.write_table(pa.table({"a": np.full(3, place, "float32")}), tmp_path / f"{name}.parquet")
    found = data.load(tmp_path, split="train")
    assert (found.x.unique().tolist(), found.split, found.total) == ([0.0, 1.0], "train", 6)
    assert data.load(tmp_path).x.unique().tolist() == [2.0]
    (tmp_path / "test-0.parquet").unlink()
    found = data.load(tmp_path)
    assert (found.x.unique().tolist(), found.split) == ([3.0], "validation")
    (tmp_path / "trainer.parquet").write_bytes((tmp_path / "train-0.parquet").read_bytes())
    with pytest.raises(InputError, match=r"of several splits and also trainer\.parquet"):
        data.load(tmp_path)


def test_an_index_of_pandas_is_no_feature(tmp_path):
    columns = {"a": np.arange(3.0), "row": np.arange(3), "__index_level_0__": np.arange(3)}
    meta = {b"pandas": json.dumps({"index_columns": ["row", {"kind": "range"}]}).encode()}
    pq.write_table(pa.table(columns).replace_schema_metadata(meta), tmp_path / "d.parquet")
    assert data.load(tmp_path / "d.parquet").x.tolist() == [[0.0], [1.0], [2.0]]
    assert data.load(tmp_path / "d.parquet", x_columns=("a", "row")).x.shape == (3, 2)


def test_uneven_lists_and_missing_labels_are_left_out(tmp_path):
    lists = pa.array([[1.0, 2.0], [3.0], [4.0, None], None, [5.0, 6.0], [7.0, 8.0]], pa.list_(pa.float32()))
    for labels in (["b", "a", "a", "a", None, "c"], [1, 0, 0, 0, None, 2]):
        pq.write_table(pa.table({"series": lists, "label": pa.array(labels)}), tmp_path / "d.parquet")
        part = data.load(tmp_path / "d.parquet", skip_bad=True)
        assert part.x.tolist() == [[1.0, 2.0], [7.0, 8.0]]
        assert (part.ids.tolist(), part.target.tolist(), part.total) == ([0, 5], [1, 2], 6)
        assert sorted(int(bad.file.rpartition(" ")[2]) for bad in part.skipped) == [1, 2, 3, 4]
    table, arrays = image_table(3)
    table = table.set_column(1, "label", pa.array([None, 0, 1]))
    pq.write_table(table, tmp_path / "i.parquet")
    part = data.load(tmp_path / "i.parquet", skip_bad=True)
    assert (part.ids.tolist(), part.target.tolist()) == ([1, 2], [0, 1])
    np.testing.assert_allclose(part.x[0].numpy(), arrays[1].transpose(2, 0, 1) / 255.0, rtol=1e-6)


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_damaged_tables(tmp_path, damage):
    pq.write_table(image_table()[0], tmp_path / "d.parquet")
    raw = (tmp_path / "d.parquet").read_bytes()
    (tmp_path / "d.parquet").write_bytes({"cut": raw[: len(raw) // 2], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(InputError, match=r"d\.parquet: not a sound Parquet file"):
        data.load(tmp_path / "d.parquet")


# Python code

CODE = """
import numpy as np
import torch

X = torch.arange(12.0).reshape(4, 3)
Y = torch.tensor([0, 1, 1, 0])

def pair(): return X, Y
def arrays(): return {"x": X.numpy(), "y": Y.numpy()}
def alone(): return X
def number(): return 3
def levels(): return torch.zeros(2, 3, dtype=torch.uint8)

class Rows:
    def __init__(self, bad=()): self.bad = bad
    def __len__(self): return len(X)
    def __getitem__(self, i):
        if i in self.bad: raise OSError(f"no row {i}")
        return (X[i], int(Y[i])) if i != 2 or not self.bad else (X[i, :2], int(Y[i]))

def rows(): return torch.utils.data.Subset(Rows(), [0, 1, 2, 3])
def broken(): return Rows(bad=(1,))
def stream(): return ((X[i], Y[i]) for i in range(4))
"""


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(CODE))
    return path


@pytest.mark.parametrize("name", ["pair", "arrays", "rows", "Rows", "stream"])
def test_python_code_gives_samples(code, name):
    part = data.load(f"{code}:{name}")
    assert part.x.tolist() == torch.arange(12.0).reshape(4, 3).tolist()
    assert part.target.tolist() == [0, 1, 1, 0]
    few = data.load(f"{code}:{name}", limit=3)
    assert few.target.tolist() == [0, 1, 1]
    if name != "stream":
        assert few.total == 4


def test_python_code_with_bad_samples(code):
    assert data.load(f"{code}:alone").target is None
    with pytest.raises(InputError, match=r"mine\.py:broken, sample 1: failed with OSError: no row 1"):
        data.load(f"{code}:broken")
    part = data.load(f"{code}:broken", skip_bad=True)
    assert part.ids.tolist() == [0, 3]
    assert [bad.reason for bad in part.skipped] == ["failed with OSError: no row 1", "has shape (2,), the first (3,)"]
    for name, match in (("number", "got int"), ("levels", "must be floating, got uint8"), ("none", "has no 'none'")):
        with pytest.raises(InputError, match=match):
            data.load(f"{code}:{name}")


def test_a_set_of_ones_own_making_is_checked(tmp_path):
    (tmp_path / "own.py").write_text(
        "import torch\nfrom dataclasses import replace\nfrom epsball.data import Dataset\n"
        "X = torch.tensor([[1.0, 2.0], [float('nan'), 0.0], [5.0, 6.0]])\n"
        "Y = torch.tensor([0, 1, 1])\n"
        "def make(x=X, **more):\n    return Dataset.of('mine', x, Y, split='test', source='s', **more)\n"
        "def levels(): return make(X.nan_to_num().int())\n"
        "def ids(): return make(ids=torch.arange(2))\n"
    )
    for name, match in (("make", "NaN"), ("levels", "must be floating"), ("ids", "expected ids")):
        with pytest.raises(InputError, match=match):
            data.load(f"{tmp_path}/own.py:{name}")
    part = data.load(f"{tmp_path}/own.py:make", skip_bad=True)
    assert (part.name, part.split, part.ids.tolist(), part.target.tolist()) == ("mine", "test", [0, 2], [0, 1])
    assert part.digest == data.digest_of(part.x, part.target)
    assert [bad.reason for bad in part.skipped] == ["holds NaN or infinite values"]


def test_neighbours_of_like_name_are_not_shared(tmp_path):
    code = (
        "import neighbour\nfrom neighbourly.part import Z\n\ndef make():\n    import later\n    import neighbour as n\n"
    )
    code += "    assert n is neighbour\n    return neighbour.X + later.X + Z\n"
    for place in (1.0, 2.0):
        folder = tmp_path / f"{place}"
        (folder / "neighbourly").mkdir(parents=True)
        (folder / "mine.py").write_text(code)
        (folder / "neighbourly" / "part.py").write_text(f"Z = {1000 * place}")
        for name, value in (("neighbour", place), ("later", 10 * place)):
            (folder / f"{name}.py").write_text(f"import torch\nX = torch.full((2, 3), {value})")
    for place in (1.0, 2.0, 1.0):
        assert data.load(f"{tmp_path}/{place}/mine.py:make").x.unique().tolist() == [1011 * place]
    assert not {"neighbour", "later", "neighbourly", "neighbourly.part"} & set(sys.modules)


# URLs


@pytest.fixture
def store():
    fsspec = pytest.importorskip("fsspec", reason="fsspec is an optional extra")
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_urls_read_what_paths_read(store, tmp_path):
    for place in range(4):
        write_image(tmp_path / "images" / ("a" if place % 2 else "b") / f"{place}.png", noise(4, 4, 3, seed=place))
    np.savez(tmp_path / "d.npz", x=np.ones((2, 3), "float32"), y=np.array([0, 1]))
    torch.save({"x": torch.ones(2, 3)}, tmp_path / "d.pt")
    pq.write_table(image_table()[0], tmp_path / "d.parquet")
    (tmp_path / "shards").mkdir()
    pq.write_table(image_table()[0], tmp_path / "shards" / "0.parquet")
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file():
            store.pipe(f"/bucket/{path.relative_to(tmp_path)}", path.read_bytes())
    for name in ("images", "d.npz", "d.pt", "d.parquet", "shards"):
        expected = data.load(tmp_path / name)
        for url in (f"memory://bucket/{name}", f"file://{tmp_path}/{name}"):
            found = data.load(url)
            assert (found.digest, found.classes) == (expected.digest, expected.classes)
        assert data.load(f"memory://bucket/{name}").name == f"memory://bucket/{name}"


def test_bad_files_behind_a_url_are_named(store):
    store.pipe("/bucket/a.png", png(noise(4, 4)))
    store.pipe("/bucket/b.png", b"hello")
    store.pipe("/bucket/d.npz", b"hello")
    with pytest.raises(InputError, match=r"memory://bucket/b\.png: cannot be read as an image"):
        data.load("memory://bucket")
    part = data.load("memory://bucket", skip_bad=True)
    assert [bad.file for bad in part.skipped] == ["memory://bucket/b.png", "memory://bucket/d.npz"]
    with pytest.raises(InputError, match=r"memory://bucket/d\.npz: not a sound \.npz"):
        data.load("memory://bucket/d.npz")
    with pytest.raises(InputError, match=r"memory://bucket/none\.npz does not exist"):
        data.load("memory://bucket/none.npz")


def test_urls_that_cannot_be_read_say_why(store, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="nosuch://x cannot be opened"):
        data.load("nosuch://x")
    with pytest.raises(InputError, match="holds a password") as caught:
        data.load("s3://me:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)
    bad = tmp_path / "out.png"
    write_image(tmp_path / "in" / "a.png", noise(4, 4))
    write_image(bad, noise(4, 4))
    (tmp_path / "in" / "b.png").symlink_to(bad)
    with pytest.raises(InputError, match="a link that leads out of"):
        data.load(f"file://{tmp_path}/in")

    class Down:
        def exists(self, path):
            raise TimeoutError("no answer\nat all")

    monkeypatch.setattr(remote, "locate", lambda url: None)
    with pytest.raises(OSError, match="s3://b/x: TimeoutError: no answer at all"):
        remote.RemotePath(Down(), "b/x", "s3://b/x").exists()


@pytest.mark.parametrize(
    "url",
    [
        "https://hunter2@host/x.npz",
        "s3://me:hun/ter2@bucket/x.npz",
        "simplecache::s3://me:hunter2@bucket/x.npz",
        "abfs://me:hunter2@account/x.npz",
        "https://host/x.npz?X-Amz-Signature=hunter2",
        "https://host/x.npz?a=1&sig=hunter2",
        "https://host/x.npz?access%5Ftoken=hunter2",
        "https://host/x.npz?Key=hunter2",
        "https://host/x.npz?password=hunter2",
        "https://host/x.npz?X-Amz-Credential=hunter2",
    ],
)
def test_urls_that_hold_secrets_are_refused_and_not_repeated(url):
    with pytest.raises(InputError, match="give credentials through") as caught:
        remote.locate(url)
    assert "ter2" not in str(caught.value)


def test_urls_without_secrets_pass(store):
    for url in ("memory://bucket/a@b:c.npz", "memory://bucket/x.npz?design=1&versionId=3"):
        assert str(remote.locate(url)) == url
    assert not remote._USER.search(remote._CONTAINER.sub("", "abfs://container@account.dfs.core.windows.net/x"))


def test_file_urls_are_paths_of_this_machine(tmp_path):
    for name in ("a#b?c.npz", "d e.npz"):
        np.savez(tmp_path / name, x=np.ones((2, 3), "float32"))
        for host in ("", "localhost"):
            assert len(data.load(f"file://{host}{tmp_path}/{name.replace(' ', '%20')}")) == 2
    with pytest.raises(InputError, match=r"expected file:///path on this machine"):
        data.load(f"file://elsewhere{tmp_path}/d%20e.npz")
