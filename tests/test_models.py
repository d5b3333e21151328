"""Models from anywhere: each attacked through its adapter and past it, and each kind of refusal with its reason."""

import contextlib
import io
import json
import math
import sys
import textwrap
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

import epsball as eb
from epsball.cli.app import app
from epsball.experiments.config import RunConfig
from epsball.models import Output, Preprocessing, check_model_door, load_model, parse
from epsball.models import optional as adapters
from epsball.models.fixed_batch import AnyBatch
from epsball.models.pt2_archive import _check_expression, _check_operator
from helpers import generator

SHAPE = (3, 8, 8)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def images(count=5, shape=SHAPE, seed=0):
    return torch.rand(count, *shape, generator=generator(seed))


def small(seed=0, classes=4):
    """A convolutional network with batch normalisation that has seen data, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, classes)
        )
        model(torch.rand(32, *SHAPE) * 2 - 1)
    return model.eval()


def prepared(model, x, *, mean=None, std=None, size=None, bgr=False):
    """The same preprocessing, written out."""
    if size is not None:
        x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)
    if bgr:
        x = x[:, [2, 1, 0]]
    if mean is not None:
        x = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    return model(x)


def same_attacks(first, second, x, rtol=1e-4, names=("pgd", "alg1", "quadratic-lp")):
    """Both models lead these attacks to the same perturbation."""
    with torch.no_grad():
        target = second(x).argmax(1)
    for name in names:
        attack = eb.recipe(name, p=2.0, eps=0.3, **({"bounds": (0.0, 1.0)} if name != "quadratic-lp" else {}))
        y = None if name == "quadratic-lp" else target
        a, b = (attack(model, x, y, seed=1).perturbation for model in (first, second))
        assert a.abs().max() > 0.01
        assert (a - b).norm() <= max(rtol, 1e-6) * b.norm() * (30 if name == "quadratic-lp" else 1), name


def refused(match, function, *arguments, **options):
    with pytest.raises(eb.InputError, match=match) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What --model may say


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("digits-fcnn", "catalogue"),
        ("net.py:make", "python"),
        ("a/b c/net.py:Net.small", "python"),
        ("package.module:make", "python"),
        ("x/y.pt2", "pt2"),
        ("net.onnx", "onnx"),
        ("timm:resnet18", "timm"),
    ],
)
def test_the_text_tells_the_kind(text, kind):
    assert parse(text).kind == kind
    assert parse(text).own == (kind != "catalogue")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("digits-fcn", "did you mean 'digits-fcnn'.*file.py:factory"),
        ("weights.pt", "holds weights"),
        ("weights.safetensors", "holds weights"),
        ("net.py", r"net\.py:factory"),
        ("", "expected model"),
        ("net.py:1x", "unknown network"),
    ],
)
def test_text_that_means_no_model_is_refused(text, match):
    refused(match, parse, text)


# Preprocessing: eps stays in data units, and the attack is the one on the written-out chain


@pytest.fixture
def python_file(tmp_path):
    def write(code, name="net.py"):
        path = tmp_path / name
        path.write_text("import torch\nfrom torch import nn\n" + textwrap.dedent(code))
        return path

    return write


@pytest.fixture
def network_file(tmp_path, python_file):
    """The small network as a user has it: a factory and a checkpoint."""
    path = python_file(
        """
        def make():
            return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                                 nn.Linear(54, 4))
        """
    )
    torch.save(small().state_dict(), tmp_path / "w.pt")
    return f"{path}:make", tmp_path / "w.pt"


@pytest.mark.parametrize(
    ("flags", "written"),
    [
        ({}, {}),
        ({"mean": MEAN, "std": STD}, {"mean": MEAN, "std": STD}),
        ({"mean": 0.5, "std": 0.25}, {"mean": (0.5,) * 3, "std": (0.25,) * 3}),
        ({"channel_order": "bgr", "mean": MEAN, "std": STD}, {"bgr": True, "mean": MEAN, "std": STD}),
        (
            {"resize": "8x8", "mean": MEAN, "std": STD, "channel_order": "bgr"},
            {"size": (8, 8), "bgr": True, "mean": MEAN, "std": STD},
        ),
    ],
)
def test_preprocessing_is_the_written_out_one(network_file, flags, written):
    text, weights = network_file
    model, original = load_model(text, weights, **flags), small()
    x = images(shape=(3, 11, 9)) if "size" in written else images()
    with torch.no_grad():
        torch.testing.assert_close(model(x), prepared(original, x, **written))
    same_attacks(model, lambda z: prepared(original, z, **written), x)
    result = eb.recipe("fgsm", p=math.inf, eps=0.05)(model, x, model(x).argmax(1))
    assert 0.049 < result.perturbation.abs().max() <= 0.05 + 1e-6, "eps is in data units, whatever std is"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"std": (0.0, 1.0, 1.0)}, "std > 0"),
        ({"mean": (math.nan,)}, "finite"),
        ({"mean": (0.1, 0.2), "std": (1.0, 1.0, 1.0)}, "as many std as mean"),
        ({"channel_order": "rbg"}, "'rgb' or 'bgr'"),
        ({"resize": (0, 4)}, "HEIGHTxWIDTH"),
    ],
)
def test_preprocessing_that_cannot_be_meant_is_refused(options, match):
    refused(match, Preprocessing, **options)


def test_preprocessing_that_does_not_fit_the_data_is_refused():
    refused("one for each of the 1 channels", Preprocessing(mean=MEAN), images(shape=(1, 4, 4)))
    refused("expected images", Preprocessing(resize=(4, 4)), images(shape=(12,)))
    x = images(shape=(3,))
    torch.testing.assert_close(Preprocessing(mean=MEAN, std=STD)(x), (x - torch.tensor(MEAN)) / torch.tensor(STD))


# Outputs


def test_outputs_are_selected():
    a, b = images(shape=(2,)), images(shape=(5, 3, 4))
    tree = {"logits": a, "heads": (a, {"depth": b}), "0": -a}
    for text, expected in (
        ("logits", a),
        ("heads.0", a),
        ("heads.-1.depth", b),
        ("0", -a),
        ("heads.1.depth[:,1,2]", b[:, :, 1, 2]),
        ("heads.1.depth[1:3]", b[:, 1:3]),
        ("logits,heads.1.depth", torch.cat([a, b.flatten(1)], 1)),
        ("heads.1.depth[0,:,1],logits", torch.cat([b[:, 0, :, 1], a], 1)),
    ):
        assert torch.equal(Output(text)(tree), expected), text
    assert torch.equal(Output("[:,1,2]")(b), b[:, :, 1, 2])
    for text in ("nothing", "heads.7", "logits[5]", "logits[:,1]", "heads,logits"):
        refused("fit|expected", Output(text), tree)
    for text in ("", "a,,b", "a[b]", "a..b", "[", "a]"):
        refused("expected output", Output, text)


def test_a_dict_without_a_choice_names_its_keys(python_file):
    path = python_file("def make(): return lambda x: {'loss': None, 'logits': x.flatten(1)}")
    refused("keys 'loss', 'logits'.*--output", load_model(f"{path}:make"), images())
    assert load_model(f"{path}:make", output="logits")(images()).shape == (5, 192)


def test_one_number_a_sample_is_the_logit_of_two_classes(python_file):
    path = python_file("def make(): return lambda x: 3 * x.flatten(1).sum(1) - 288")
    model, x = load_model(f"{path}:make"), images(40)
    assert check_model_door(model, x, "m") == (1,)
    target = (x.flatten(1).sum(1) > 96).long()
    result = eb.recipe("deepfool", p=2.0, eps=math.inf)(model, x, target)
    # The distance to the plane Σx = 96, with DeepFool's overshoot.
    distance = (x.flatten(1).sum(1) - 96).abs() / math.sqrt(192)
    torch.testing.assert_close(result.norm, 1.02 * distance, rtol=1e-3, atol=1e-5)


# Python code


def test_python_code_with_weights_and_without(network_file, tmp_path, monkeypatch):
    text, weights = network_file
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(load_model(text, weights)(x), small()(x))
        state = torch.random.get_rng_state()
        first, again, other = (load_model(text, seed=seed)(x) for seed in (0, 0, 1))
        assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    monkeypatch.chdir(tmp_path)
    model = load_model("net:make", weights)  # as a module of the working directory
    assert model.describe()["kind"] == "Python code"
    assert len(model.describe()["digest"]) == len(model.describe()["code_digest"]) == 64
    sys.modules.pop("net")
    assert str(tmp_path) not in sys.path


def test_weights_as_safetensors(network_file, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is an optional extra")
    safetensors.save_file(small().state_dict(), tmp_path / "w.safetensors")
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(load_model(network_file[0], tmp_path / "w.safetensors")(x), small()(x))


def test_weights_of_another_network_are_refused(network_file, tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    refused("other.pt: the tensor '0.weight' is missing", load_model, network_file[0], tmp_path / "other.pt")
    refused("does not exist", load_model, network_file[0], tmp_path / "absent.pt")
    refused("is for timm", load_model, network_file[0], "pretrained")


class Boom:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_weights_are_never_unpickled(network_file, tmp_path):
    torch.save({"0.weight": Boom(tmp_path / "boom")}, tmp_path / "evil.pt")
    refused("not a sound checkpoint", load_model, network_file[0], tmp_path / "evil.pt")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("code", "match"),
    [
        ("raise ValueError('not today')", r"failed with ValueError: not today; line 3 of .*net\.py"),
        ("import no_such_module_here", "ModuleNotFoundError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def make(", "SyntaxError"),
        ("def made(): pass", "has no 'make'; it defines made"),
        ("def make(a): pass", "TypeError.*argument"),
        ("def make(): return 3", "got int"),
        ("make = 7", "got int"),
    ],
)
def test_python_code_that_gives_no_model(python_file, code, match):
    refused(match, load_model, f"{python_file(code)}:make")


def test_modules_in_a_plain_callable_are_held(python_file):
    path = python_file(
        """
        NET = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 4))

        def closure():
            net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 4))
            return lambda x: net(x)

        def outer():
            return lambda x: NET(x)
        """
    )
    for name in ("closure", "outer"):
        model, x = load_model(f"{path}:{name}"), images()
        norm = next(part for part in model.modules() if isinstance(part, nn.BatchNorm2d))
        assert sum(p.numel() for p in model.parameters()) == 112 + 8 + 580
        assert not any(part.training for part in model.modules())
        mean = norm.running_mean.clone()
        torch.testing.assert_close(model(x)[:1], model(x[:1]))
        eb.recipe("pgd", p=2.0, eps=0.1)(model, x, torch.zeros(5, dtype=torch.long))
        assert torch.equal(norm.running_mean, mean)
        assert model.to(torch.float64)(x.double()).dtype == torch.float64


def test_python_code_that_is_not_there(tmp_path):
    refused("does not exist", load_model, f"{tmp_path}/absent.py:make")
    refused("ModuleNotFoundError", load_model, "no_such_package.module:make")


# The door


class Under(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.layer = function, nn.Linear(192, 4)

    def forward(self, x):
        return self.function(self, x.flatten(1))


def no_grad(self, x):
    with torch.no_grad():
        return self.layer(x)


DEAD_ENDS = {
    "no_grad": (no_grad, r"torch\.no_grad\(\)"),
    "detach": (lambda self, x: self.layer(x.detach()), r"cuts the gradient off with \.detach"),
    "data": (lambda self, x: self.layer(x.data), r"cuts the gradient off with \.data"),
    "argmax": (lambda self, x: self.layer(functional.one_hot(x.argmax(1), 192).float()), r"argmax\(\).*int64"),
    "round": (lambda self, x: self.layer(torch.round(4 * x)), r"exactly zero.*round\(\)"),
    "sign": (lambda self, x: self.layer((x - 0.5).sign()), r"exactly zero.*sign\(\)"),
    "levels": (lambda self, x: self.layer((255 * x).long().float()), r"long\(\).*int64"),
    "classes": (lambda self, x: self.layer(x).argmax(1), "floating scores or values, got torch.int64"),
    "numpy": (lambda self, x: self.layer(torch.from_numpy(x.numpy())), r"calls \.numpy\(\)"),
    "embedding": (lambda self, x: functional.embedding(x, torch.ones(3, 2)).sum(1), "takes integers"),
    "constant": (lambda self, x: torch.zeros(len(x), 4), "do not depend on the input"),
    "error": (lambda self, x: {}["no\nsuch key"], "fails on them: KeyError"),
    "size": (lambda self, x: self.layer(x[:, :7]), r"shape of the data.*--resize"),
}


@pytest.mark.parametrize("name", DEAD_ENDS)
def test_what_gives_no_input_gradient_is_refused_with_the_reason(name):
    function, match = DEAD_ENDS[name]
    model = Under(function).train()
    refused(match, check_model_door, model, images(), "mine")
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_masks_and_flat_functions_beside_a_smooth_path_pass_the_door():
    kept = lambda self, x: self.layer(x * (x > 0.5).float() + torch.round(x).detach() + x.round())  # noqa: E731
    assert check_model_door(Under(kept), images(), "mine") == (4,)


# Exported programs


def export(model, path, count=4, dynamic=None, shape=SHAPE):
    program = torch.export.export(model, (images(count, shape),), dynamic_shapes=dynamic)
    torch.export.save(program, path)
    return str(path)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pt2")
    batch = torch.export.Dim("batch")
    return {
        "dynamic": export(small(), folder / "dynamic.pt2", dynamic=({0: batch},)),
        "two or more": export(small(), folder / "auto.pt2", dynamic=({0: torch.export.Dim.AUTO},)),
        "four": export(small(), folder / "four.pt2"),
        "one": export(small(), folder / "one.pt2", count=1),
        "two to three": export(
            small(), folder / "range.pt2", count=3, dynamic=({0: torch.export.Dim("batch", min=2, max=3)},)
        ),
    }


@pytest.mark.parametrize("kind", ["dynamic", "two or more", "four", "one", "two to three"])
def test_exported_programs_are_attacked_like_the_original(programs, kind):
    model, x = load_model(programs[kind], mean=MEAN, std=STD), images()
    original = small()
    with torch.no_grad():
        for count in (1, 2, 5):
            torch.testing.assert_close(model(x[:count]), prepared(original, x[:count], mean=MEAN, std=STD))
    assert check_model_door(model, x, kind) == (4,)
    same_attacks(model, lambda z: prepared(original, z, mean=MEAN, std=STD), x)
    assert model.describe().get("fixed_batch") == {"four": 4, "one": 1}.get(kind)


def test_exported_programs_of_other_inputs_are_refused(programs, tmp_path):
    refused(r"expected samples of shape \(3, 8, 8\)", load_model(programs["dynamic"]), images(shape=(3, 9, 8)))
    refused("holds its own", load_model, programs["dynamic"], "w.pt")
    refused("does not exist", load_model, "absent.pt2")

    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    class Look(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 3)

        def forward(self, x):
            return self.table(x)

    torch.export.save(torch.export.export(Two(), (images(), images())), tmp_path / "two.pt2")
    refused("one input, got 2", load_model, str(tmp_path / "two.pt2"))
    torch.export.save(torch.export.export(Look(), (torch.ones(2, 3, dtype=torch.long),)), tmp_path / "look.pt2")
    refused("floating inputs, got torch.int64", load_model, str(tmp_path / "look.pt2"))


def test_a_batch_of_samples_that_depend_on_each_other_is_not_hidden_by_padding():
    """Padding must not make a model of the whole batch look like one of each sample."""
    model = AnyBatch(lambda x: x.flatten(1) - x.flatten(1).mean(0), 4, 4)
    with pytest.raises(eb.InputError, match="depends on that sample alone"):
        eb.recipe("pgd", p=2.0, eps=0.1)(model, images(), torch.zeros(5, dtype=torch.long))


def test_parts_keep_the_structure_of_the_outputs():
    def program(x):
        assert len(x) == 4
        return {"a": x.flatten(1), "b": (2 * x, 7)}

    x = images(6)
    found = AnyBatch(program, 4, 4)(x)
    assert torch.equal(found["a"], x.flatten(1))
    assert torch.equal(found["b"][0], 2 * x)
    assert found["b"][1] == 7


def rewritten(path, out, change):
    """Copy a .pt2 with some of its records changed, in the place and order that they have."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
        for item in source.infolist():
            target.writestr(item.filename, change(item.filename, source.read(item)))
    return str(out)


def in_program(old, new):
    def change(name, content):
        if not name.endswith("models/model.json"):
            return content
        assert old.encode() in content, old
        return content.replace(old.encode(), new.encode())

    return change


def pickled(boom):
    stream = io.BytesIO()
    torch.save({"x": Boom(boom)}, stream)
    return stream.getvalue()


def test_a_rewritten_program_still_loads(programs, tmp_path):
    """The attacks below fail because of what they change, not because of how it is written."""
    path = rewritten(programs["dynamic"], tmp_path / "same.pt2", lambda name, content: content)
    assert load_model(path)(images()).shape == (5, 4)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (in_program("torch.ops.aten.relu.default", "torch.ops.aten.from_file.default"), "not one of torch's own"),
        (in_program("torch.ops.aten.relu.default", "torch.hub.load"), "not one of torch's own"),
        (in_program("torch.ops.aten.relu.default", "torch.ops.load_library"), "not one of torch's own"),
        (in_program("torch.ops.aten.relu.default", "_operator.methodcaller"), "not one of torch's own"),
        (in_program('"name": "relu"', '"name": "a=open(chr(98),chr(119))"'), "damaged or hostile"),
        (in_program("torch.ops.aten.relu.default", "torch.ops.aten.save.default"), "not one of torch's own"),
        (in_program("torch.ops.aten.relu.default", "torch.ops.aten.warn.default"), "not one of torch's own"),
        (in_program("torch.ops.aten.relu.default", "torch.ops.aten.format.default"), "not one of torch's own"),
        (in_program("Symbol('", "S('open(1)') + Symbol('"), "damaged or hostile"),
        (in_program("positive=True", "positive=open('b')"), "damaged or hostile"),
    ],
)
def test_programs_that_are_more_than_operators_are_refused(programs, tmp_path, change, match):
    path = rewritten(programs["dynamic"], tmp_path / "evil.pt2", change)
    refused(match, load_model, path)


def structured(key, spec):
    """Put another structure of the inputs or outputs into a program."""

    def change(name, content):
        if not name.endswith("models/model.json"):
            return content
        program = json.loads(content)
        signatures = [call["signature"] for call in program["graph_module"]["module_call_graph"] if call["signature"]]
        for signature in signatures:
            signature[key] = spec
        assert signatures
        return json.dumps(program).encode()

    return change


LEAF = {"type": None, "context": None, "children_spec": []}


def structure(kind, context):
    return json.dumps([1, {"type": kind, "context": json.dumps(context), "children_spec": [LEAF]}])


@pytest.mark.parametrize("key", ["in_spec", "out_spec"])
def test_structures_import_nothing(programs, tmp_path, monkeypatch, key):
    boom = tmp_path / "boom"
    name = f"evil_{key}"  # torch keeps what it has read by its text
    (tmp_path / f"{name}.py").write_text(f"import enum\nopen({str(boom)!r}, 'w')\nclass E(enum.Enum):\n    a = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    enum = {"__enum__": True, "fqn": f"{name}:E", "name": "a"}
    wrong = (
        structure("builtins.dict", [enum]),
        structure("builtins.tuple", enum),
        structure("collections.OrderedDict", [{"a": enum}]),
        structure("collections.namedtuple", f"{name}.E"),
        structure("collections.defaultdict", {"default_factory_module": name, "default_factory_name": "E"}),
        structure("builtins.list", ["a"]),
        "[1, ",
        [1, LEAF],
        None,
    )
    for place, spec in enumerate(wrong):
        path = rewritten(programs["dynamic"], tmp_path / f"{place}.pt2", structured(key, spec))
        refused("structure .* damaged or hostile", load_model, path)
    assert not boom.exists()
    with contextlib.suppress(Exception):
        torch.export.load(tmp_path / "0.pt2")
    assert boom.exists(), "torch.export.load by itself would have run it"
    sys.modules.pop(name, None)


def test_plain_structures_of_outputs_pass(tmp_path):
    class Parts(nn.Module):
        def forward(self, x):
            return OrderedDict(a=x.flatten(1), b=[x, {"c": (2 * x, None)}, {1: x}])

    model = load_model(export(Parts(), tmp_path / "p.pt2"), output="a")
    torch.testing.assert_close(model(images()), images().flatten(1))


def test_programs_are_never_unpickled(programs, tmp_path):
    boom = tmp_path / "boom"

    def sample(name, content):
        return pickled(boom) if name.endswith("sample_inputs/model.pt") else content

    refused("nothing is unpickled", load_model, rewritten(programs["dynamic"], tmp_path / "a.pt2", sample))

    def weight(name, content):
        if name.endswith("model_weights_config.json"):
            config = json.loads(content)
            next(iter(config["config"].values()))["use_pickle"] = True
            return json.dumps(config).encode()
        return pickled(boom) if name.endswith("weights/weight_0") else content

    refused("nothing is unpickled", load_model, rewritten(programs["dynamic"], tmp_path / "b.pt2", weight))
    assert not boom.exists()
    with contextlib.suppress(Exception):
        torch.export.load(tmp_path / "b.pt2")
    assert boom.exists(), "torch.export.load by itself would have run it"


def test_damaged_programs_are_refused(programs, tmp_path):
    raw = Path(programs["dynamic"]).read_bytes()
    for name, content in (("cut", raw[: len(raw) // 2]), ("empty", b""), ("text", b"hello")):
        (tmp_path / f"{name}.pt2").write_bytes(content)
        refused("not a sound", load_model, str(tmp_path / f"{name}.pt2"))


def test_sizes_and_operators_that_exports_use_pass():
    for text in ("s77", "Symbol('s77', positive=True, integer=True)", "2*s0 + FloorDiv(s1, 4)", "Max(1, u0)", "-1"):
        _check_expression(text, "f")
    for text in ("__import__('os')", "s0.real", "S('s0')", "(lambda: 1)()", "Symbol('a b')", "[s0]", "open('x')"):
        refused("hostile", _check_expression, text, "f")
    for text in ("torch.ops.aten.add.Tensor", "_operator.getitem", "torch.sym_max", "torch.ops.higher_order.cond"):
        _check_operator(text, "f")


# ONNX


def onnx_file(path, shape, *, reshape=None, name="n", kind=1):
    """A two-layer network written by hand: Flatten or Reshape, Gemm, Tanh, Gemm."""
    onnx = pytest.importorskip("onnx", reason="onnx is an optional extra")
    helper, to_tensor = onnx.helper, onnx.numpy_helper.from_array
    rng = np.random.default_rng(0)
    first, second = (rng.normal(size=size).astype("float32") for size in ((192, 8), (8, 4)))
    head = (
        helper.make_node("Flatten", ["x"], ["f"], name=name)
        if reshape is None
        else helper.make_node("Reshape", ["x", "s"], ["f"], name=name)
    )
    nodes = [
        head,
        helper.make_node("Gemm", ["f", "a"], ["g"], name="/gemm.1"),
        helper.make_node("Tanh", ["g"], ["h"], name="/tanh"),
        helper.make_node("Gemm", ["h", "b"], ["y"], name="/gemm.2"),
    ]
    weights = [to_tensor(first, "a"), to_tensor(second, "b")]
    if reshape is not None:
        weights.append(to_tensor(np.array(reshape, dtype="int64"), "s"))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", kind, shape)], [value("y", 1, [shape[0], 4])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, str(path))
    a, b = torch.from_numpy(first), torch.from_numpy(second)
    return str(path), lambda x: torch.tanh(x.flatten(1) @ a) @ b


@pytest.mark.parametrize(
    ("batch", "reshape", "fixed"),
    [("N", None, None), (1, None, None), (1, (1, 192), 1), (4, (4, 192), 4), (4, (-1, 192), None)],
)
def test_onnx_files_are_attacked_like_the_original(adapter, tmp_path, batch, reshape, fixed):
    adapter("onnx2torch")
    path, original = onnx_file(tmp_path / "net.onnx", [batch, *SHAPE], reshape=reshape)
    model, x = load_model(path, mean=MEAN, std=STD), images()
    written = lambda z: prepared(original, z, mean=MEAN, std=STD)  # noqa: E731
    with torch.no_grad():
        torch.testing.assert_close(model(x), written(x), rtol=1e-4, atol=1e-4)
    assert check_model_door(model, x, "net") == (4,)
    same_attacks(model, written, x, rtol=1e-3)
    assert model.describe().get("fixed_batch") == fixed


def test_names_in_an_onnx_file_are_not_run(adapter, tmp_path):
    adapter("onnx2torch")
    boom = tmp_path / "boom"
    path, original = onnx_file(tmp_path / "net.onnx", ["N", *SHAPE], name=f'x", open("{boom}", "w"))#')
    x = images()
    with torch.no_grad():
        torch.testing.assert_close(load_model(path)(x), original(x), rtol=1e-4, atol=1e-4)
    assert not boom.exists()


def test_onnx_files_that_cannot_be_taken(adapter, tmp_path):
    adapter("onnx2torch")
    path, _ = onnx_file(tmp_path / "int.onnx", ["N", *SHAPE])
    import onnx

    proto = onnx.load(path)
    proto.graph.input[0].type.tensor_type.elem_type = 7
    onnx.save(proto, path)
    refused("floating inputs|not a sound ONNX", load_model, path)
    proto.graph.input[0].type.tensor_type.elem_type = 1
    proto.graph.node[2].op_type = "Softsign"
    onnx.save(proto, path)
    try:
        load_model(path)
    except eb.InputError as error:
        assert "onnx2torch cannot convert it" in str(error)  # noqa: PT017
    (tmp_path / "text.onnx").write_text("hello")
    refused("not a sound ONNX file", load_model, str(tmp_path / "text.onnx"))
    refused("holds its own", load_model, path, "w.pt")


# timm


def test_timm_networks_are_attacked_like_the_original(adapter, tmp_path):
    timm = adapter("timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        original = timm.create_model("test_resnet", num_classes=7).eval()
    torch.save(original.state_dict(), tmp_path / "w.pt")
    config = timm.data.resolve_model_data_config(original)
    model = load_model("timm:test_resnet", tmp_path / "w.pt")  # seven classes, as in the weights
    x = images(3, (3, 40, 36))

    def written(z):
        z = functional.interpolate(
            z, size=config["input_size"][1:], mode=config["interpolation"], align_corners=False, antialias=True
        )
        mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
        return original((z - mean) / std)

    with torch.no_grad():
        torch.testing.assert_close(model(x), written(x))
    assert check_model_door(model, x, "timm") == (7,)
    same_attacks(model, written, x, names=("alg1", "quadratic-lp"), rtol=1e-3)
    said = model.describe()
    assert said["preprocessing"]["mean"] == list(config["mean"])
    assert "your weights" in said["kind"]
    plain = load_model("timm:test_resnet?num_classes=7", resize="none", mean=0.0, std=1.0)
    assert "resize" not in plain.describe()["preprocessing"]
    assert "random weights" in plain.describe()["kind"]


def test_timm_names_and_numbers_that_mean_nothing(adapter, tmp_path):
    adapter("timm")
    refused("did you mean 'resnet18'", load_model, "timm:resnet81")
    for text in ("timm:", "timm:resnet18?num_classes=many", "timm:resnet18?checkpoint_path=1"):
        refused("expected", load_model, text)
    for name in ("hf_hub:someone/else", "local-dir:/tmp", "../x"):
        refused("unknown timm network", load_model, f"timm:{name}")


def test_a_missing_package_and_torchvision_of_another_build_are_told_apart(monkeypatch):
    message = refused(r"pip install 'epsball\[timm\]'", adapters.import_adapter, "no_such_package", "timm")
    assert "torchvision" not in message

    def fails(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(adapters.importlib, "import_module", fails)
    message = refused("compiled operators do not load", adapters.import_adapter, "timm", "timm")
    for part in ("torchvision::nms", torch.__version__, "pip install --force-reinstall --no-deps 'torchvision"):
        assert part in message


@pytest.mark.parametrize(
    ("torch_version", "wanted"),
    [("2.6.0+cpu", "==0.21.0+cpu"), ("2.7.1+cu126", "==0.22.1+cu126"), ("2.13.0", "==0.28.0"), ("3.0.0a0+git1", "")],
)
def test_the_torchvision_that_belongs_to_a_torch_is_named(torch_version, wanted, monkeypatch):
    monkeypatch.setattr(adapters.torch, "__version__", torch_version)
    assert adapters._matching() == wanted


# Whole runs


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def samples(tmp_path):
    """Twelve images with the classes that the small network gives them behind this preprocessing."""
    x = images(12, seed=3)
    with torch.no_grad():
        y = prepared(small(), x, mean=MEAN, std=STD).argmax(1)
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=y.numpy())
    return x, y, tmp_path / "data.npz"


def test_a_run_on_a_model_of_ones_own_says_what_it_is(programs, samples, tmp_path):
    x, y, data = samples
    result = call(
        *("attack", "--model", programs["four"], "--data", data, "--attacks", "alg1,linear-pixel-2", "--eps", "0.05"),
        *("--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD)), "--out", tmp_path / "run"),
    )
    assert result.exit_code == 0, result.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["clean"]["correct"] == 12
    assert manifest["model"]["name"] == programs["four"]
    assert manifest["model"]["preprocessing"] == {"mean": list(MEAN), "std": list(STD)}
    assert manifest["model"]["fixed_batch"] == 4
    again = RunConfig.from_dict(manifest["configuration"])
    assert again.command_line() == manifest["command"]
    assert "--mean 0.4,0.5,0.6" in manifest["command"]
    saved = np.load(tmp_path / "run" / "perturbed.npz")
    attack = eb.recipe("alg1", p=math.inf, eps=0.05, bounds=(0.0, 1.0))  # as images in [0, 1] have them
    own = attack(lambda z: prepared(small(), z, mean=MEAN, std=STD), x, y)
    np.testing.assert_allclose(saved["perturbed/alg1"], own.perturbed.numpy(), atol=1e-6)


def test_regression_heads_and_maps(python_file, samples, tmp_path):
    path = python_file(
        """
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.map = nn.Conv2d(3, 2, 3, padding=1)

            def forward(self, x):
                return {"depth": self.map(x), "size": x.flatten(1).sum(1)}
        """
    )
    model = load_model(f"{path}:Two", output="depth,size")
    assert model(images()).shape == (5, 2 * 64 + 1)
    for output in ("depth", "size"):
        result = call(
            *("evaluate", "--model", f"{path}:Two", "--data", samples[2], "--task", "regression", "--output", output),
            *("--attacks", "quadratic-lp", "--p", "2", "--eps", "0.1", "--limit", "3", "--out", tmp_path / output),
        )
        assert result.exit_code == 0, result.stderr
    result = call(
        "evaluate",
        "--model",
        f"{path}:Two",
        "--data",
        samples[2],
        "--output",
        "depth",
        "--attacks",
        "pgd",
        "--eps",
        "1",
        "--out",
        tmp_path / "no",
    )
    assert result.exit_code == 2
    assert "--task regression" in result.stderr
    result = call("evaluate", "--model", f"{path}:Two", "--out", tmp_path / "no", "--eps", "1")
    assert result.exit_code == 2
    assert "give --data" in result.stderr


HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\x07\"'&"


def test_hostile_names_are_text_in_terminal_and_page(python_file, samples, tmp_path):
    path = python_file("def make(): return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))", name="<b>x\x1b[31m.py")
    result = call(
        *("evaluate", "--model", f"{path}:make", "--data", samples[2], "--attacks", "fgsm", "--eps", "0.1"),
        *("--limit", "4", "--out", tmp_path / "run"),
    )
    assert result.exit_code == 0, result.stderr
    page = (tmp_path / "run" / "report.html").read_text()
    assert "\x1b" not in result.output + result.stderr + page
    assert "<b>x" not in page
    assert "&lt;b&gt;x" in page
    bad = python_file(f"raise ValueError({HOSTILE!r})")
    result = call("evaluate", "--model", f"{bad}:make", "--data", samples[2], "--eps", "1", "--out", tmp_path / "no")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "\x1b" not in result.stderr
    assert "\x07" not in result.stderr


def test_help_says_that_python_is_run():
    for command in ("evaluate", "attack", "robustness"):
        text = " ".join(call(command, "--help").output.replace("│", " ").split())
        assert "Python file that is named here is run" in text
