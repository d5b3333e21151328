"""Copies of a model that compute the same faster: never wrong, never the judge, made again when weights change."""

import copy
import gc
import math
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

import epsball as eb
from epsball import networks
from epsball.models import WrappedModel
from epsball.models.wrapped import Preprocessing
from epsball.networks.densenet import densenet
from epsball.prepare import Prepared, check_prepare, choose, copies, prepared
from epsball.prepare.fold import folded
from helpers import generator

FORMS = ("fold", "channels_last", "fold+channels_last")
SHAPE = (3, 8, 8)
BOUNDS = (0.0, 1.0)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(model, seed=0):
    """Weights large enough for curved boundaries, and statistics of batch norm that are no identity."""
    draw = generator(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, values in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if values.dim() > 1:
                    fan = max(1, values[0].numel())
                    values.copy_(torch.randn(values.shape, generator=draw) * math.sqrt(3.0 / fan))
                elif values.is_floating_point():
                    low = 0.5 if name in ("weight", "running_var") else -0.5
                    values.copy_(low + torch.rand(values.shape, generator=draw))
    return model


def norm(width, **options):
    return nn.BatchNorm2d(width, **options)


class Residual(nn.Module):
    """A convolution whose output is normalised, beside a short cut."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 3, 3, padding=1, bias=False), norm(3)

    def forward(self, x):
        return torch.tanh(self.norm(self.first(x))) + x


class Net(nn.Module):
    """A residual network; what its forward does is chosen by name."""

    def __init__(self, kind="plain"):
        super().__init__()
        self.kind = kind
        self.block = Residual()
        self.conv, self.norm, self.other = nn.Conv2d(3, 4, 3), norm(4), norm(4)
        self.grouped = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)
        self.after = norm(6)
        self.head = nn.Sequential(nn.Linear(24, 7, bias=False), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 5))

    def forward(self, x, scale=1.0):
        h = self.block(x) * scale
        a = self.conv(h)
        if self.kind == "one convolution, two norms":
            h = self.norm(a) + self.other(self.conv(h))
        elif self.kind == "its output is read twice":
            h = self.norm(a) + a
        elif self.kind == "one norm, two convolutions":
            h = self.norm(a) + self.norm(self.conv(0.5 * h))
        elif self.kind == "functional":
            h = functional.batch_norm(a, self.norm.running_mean, self.norm.running_var, self.norm.weight)
        elif self.kind == "number of samples":
            h = self.norm(a) if len(x) != 1 else self.other(a)
        elif self.kind == "values":
            h = self.norm(a) if x.mean() > 0.4 else self.other(a)
        else:
            h = self.norm(a)
        h = self.after(self.grouped(torch.tanh(h)))
        return 3.0 * self.head(functional.avg_pool2d(h, 6).flatten(1))


def classifier(dtype=torch.float64):
    """The network with every class as likely as the others, so that some samples fall."""
    model = drawn(Net()).double().eval()
    with torch.no_grad():
        model.head[-1].bias -= model(samples(64)).mean(0) / 3.0
    return model.to(dtype)


KINDS = {  # how many batch norms are folded; those of the block, the transposed convolution and the head always are
    "plain": 4,
    "one convolution, two norms": 5,
    "its output is read twice": 3,
    "one norm, two convolutions": 5,
    "functional": 3,
    "number of samples": 2,  # not traced, but its children are
    "values": 2,
}


def samples(count=5, shape=SHAPE, dtype=torch.float64, seed=1):
    return torch.rand(count, *shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def outputs_and_gradient(model, x, along):
    point = x.clone().requires_grad_()
    out = model(point)
    (gradient,) = torch.autograd.grad((out * along).sum(), point)
    return out.detach(), gradient


def assert_same(model, other, x, rtol):
    along = torch.linspace(-1, 2, model(x[:1]).numel(), dtype=x.dtype).reshape(model(x[:1]).shape[1:])
    for a, b in zip(outputs_and_gradient(model, x, along), outputs_and_gradient(other, x, along), strict=True):
        torch.testing.assert_close(b, a, rtol=0.0, atol=rtol * float(a.abs().max()))
        assert b.dtype == a.dtype


def copied(model, form, x, bounds=BOUNDS):
    with eb.TargetModel(model) as target:
        return prepared(target, x, form, bounds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_computes_the_same(form, dtype):
    model, x = drawn(Net()).to(dtype).eval(), samples(dtype=dtype)
    found = copied(model, form, x)
    assert isinstance(found, Prepared)
    assert found.form == tuple(form.split("+"))
    assert_same(model, found, x, 1e-5 if dtype == torch.float32 else 1e-12)
    assert_same(model, found, samples(2, dtype=dtype, seed=5), 1e-5 if dtype == torch.float32 else 1e-12)
    assert found.gap < 1e-5
    # Another layout may round as the first does.
    assert found.gap > 0 or form == "channels_last"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_folded_computes_the_same(kind):
    model, x = drawn(Net(kind)).double().eval(), samples()
    found, count = folded(copy.deepcopy(model))
    assert count == KINDS[kind]
    for batch in (x, x[:1], 0.3 * x):
        assert_same(model, found, batch, 1e-12)
        assert_same(model, copied(model, "fold", x), batch, 1e-12)


def test_the_head_of_a_batch_norm_before_the_convolution_stays():
    model = drawn(nn.Sequential(norm(3), nn.Tanh(), nn.Conv2d(3, 5, 8), nn.Flatten())).double().eval()
    with pytest.warns(eb.EpsballWarning, match="'fold' is not used.* no batch norm behind a convolution"):
        assert not isinstance(copied(model, "fold", samples()), Prepared)
    assert copied(model, "fold+channels_last", samples()).form == ("channels_last",)


@pytest.mark.parametrize("layer", [nn.Conv1d, nn.ConvTranspose1d, nn.Conv3d, nn.ConvTranspose3d])
@pytest.mark.parametrize("groups", [1, 2])
def test_layers_of_other_dimensions(layer, groups):
    made, three = layer(4, 6, 2, groups=groups, bias=groups == 1), "3d" in layer.__name__
    model = nn.Sequential(made, (nn.BatchNorm3d if three else nn.BatchNorm1d)(6), nn.Flatten(), nn.LazyLinear(5))
    x = samples(3, (4, 3, 3, 3) if three else (4, 7))
    model.double()(x)  # the statistics of this batch
    model.eval()
    found, count = folded(copy.deepcopy(model))
    assert count == 1
    assert_same(model, found, x, 1e-12)


def test_a_norm_that_depends_on_the_batch_is_never_folded():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4, track_running_stats=False), nn.Flatten())
    assert folded(model.eval())[1] == 0
    frozen = drawn(nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.Flatten())).eval()
    assert folded(copy.deepcopy(frozen))[1] == 1
    frozen[1].train()
    assert folded(frozen)[1] == 0


def test_a_subclass_and_a_parametrised_layer_stay():
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2.0 * super().forward(x)

    weight_norm, spectral = nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm
    for layer in (Doubled(3, 4, 3), weight_norm(nn.Conv2d(3, 4, 3)), spectral(nn.Conv2d(3, 4, 3))):
        model = drawn(nn.Sequential(layer, norm(4), nn.Conv2d(4, 5, 3), norm(5), nn.Flatten())).double().eval()
        x = samples()
        found = copied(model, "fold", x)
        assert_same(model, found, x, 1e-12)
        assert sum(isinstance(m, nn.BatchNorm2d) for m in found.model.modules()) == 1
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        assert_same(model, copied(model, "fold", x), x, 1e-12)


def test_tied_weights_and_a_head_without_affine_parameters():
    model = nn.Sequential(nn.Conv2d(3, 3, 3), norm(3, affine=False), nn.Conv2d(3, 3, 3), nn.Tanh(), nn.Flatten())
    model[2].weight = model[0].weight
    drawn(model).double().eval()
    for form in FORMS:
        assert_same(model, copied(model, form, samples()), samples(), 1e-12)


class Straight(torch.autograd.Function):
    """Rounds, with the gradient of the identity."""

    @staticmethod
    def forward(ctx, x):
        return (8.0 * x).round() / 8.0

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_custom_gradients_survive():
    class Rounded(nn.Module):
        def forward(self, x):
            return Straight.apply(x)

    # A symbolic trace goes through the function and loses its gradient: the copy is refused.
    model = drawn(nn.Sequential(Rounded(), Residual(), nn.Conv2d(3, 5, 8), nn.Flatten())).double().eval()
    with pytest.warns(eb.EpsballWarning, match="the copy's gradients are not"):
        assert copied(model, "fold", samples()).model is model
    assert_same(model, copied(model, "channels_last", samples()), samples(), 1e-12)


def test_a_copy_that_computes_something_else_is_refused(monkeypatch):
    model, x = drawn(Net()).double().eval(), samples()
    wrong = drawn(Net(), seed=3).double().eval()

    class Detached(nn.Module):
        """The same outputs, and another gradient."""

        def forward(self, x):
            return model(x) + 0.01 * (model(0.9 * x) - model(0.9 * x).detach())

    for other, why in ((wrong, "outputs"), (Detached(), "gradients"), (nn.Linear(3, 3), "it fails")):
        monkeypatch.setattr(copies, "folded", lambda twin, other=other: (other, 1))
        fresh = copy.deepcopy(model)
        with pytest.warns(eb.EpsballWarning, match=why):
            assert copied(fresh, "fold", x).model is fresh
        assert copied(copy.deepcopy(model), "auto", x).model is not other


def test_a_forward_that_reads_what_lies_in_memory_falls_back():
    class Viewed(nn.Module):
        def forward(self, x):
            return x.view(len(x), -1)

    model = drawn(nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), Viewed(), nn.Linear(144, 5))).double().eval()
    with pytest.warns(eb.EpsballWarning, match="it fails .*view"):
        assert copied(model, "fold+channels_last", samples()).model is model
    assert copied(model, "fold", samples()).form == ("fold",)


def test_functions_and_models_with_hooks_are_left_alone():
    model, x = drawn(Net()).double().eval(), samples()
    with pytest.warns(eb.EpsballWarning, match="it is a function"):
        assert copied(lambda x: model(x), "fold", x).model is not model
    assert isinstance(copied(model, "fold", x), Prepared)
    with pytest.warns(eb.EpsballWarning, match="it draws random numbers"):
        assert copied(eb.TargetModel(model, draws=2), "fold", x).draws == 2
    seen = []
    handle = model.conv.register_forward_hook(lambda *a: seen.append(1))
    with pytest.warns(eb.EpsballWarning, match="it has hooks"):
        assert copied(model, "fold", x).model is model
    assert not isinstance(copied(model, "auto", x), Prepared)
    handle.remove()
    assert isinstance(copied(model, "fold", x), Prepared)
    assert not seen


def test_preprocessing_and_a_choice_of_outputs_around_the_model():
    class Bare(Net):
        def forward(self, x):
            return super().forward(x)

    x = samples()
    # How a network with further arguments is called inside another is not known, so its children alone are folded.
    for network, left in ((Bare(), 0), (Net(), 3)):
        model = WrappedModel(drawn(network).double(), Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2,))).eval()
        found = copied(model, "fold+channels_last", x)
        assert found.form == ("fold", "channels_last")
        assert_same(model, found, x, 1e-12)
        assert sum(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in found.model.modules()) == left

    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = drawn(Bare()).double()

        def forward(self, x):
            scores = self.net(x)
            return {"scores": scores, "twice": 2.0 * scores}

    several = Several().eval()
    for name in ("scores", "twice"):
        with eb.TargetModel(several, name) as target:
            assert_same(target, prepared(target, x, "fold", BOUNDS), x, 1e-12)


@pytest.mark.parametrize("build", [lambda: networks.load("cifar10-nin"), lambda: densenet(10, 4)], ids=["nin", "dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_networks_of_the_catalogue(build, dtype):
    model, x = build().to(dtype).eval(), samples(2, (3, 32, 32), dtype)
    found = copied(model, "fold+channels_last", x)
    assert found.form == (("fold", "channels_last") if isinstance(model[-1], nn.Flatten) else ("channels_last",))
    if dtype == torch.float64:  # in float32 a ReLU at a kink takes either side
        assert_same(model, found, x, 1e-10)
    with torch.no_grad():
        torch.testing.assert_close(found(x), model(x), rtol=0, atol=1e-5 * float(model(x).abs().max()))


# ---------------------------------------------------------------------------------------------------------- memory


def test_what_is_not_changed_is_shared():
    model, x = drawn(Net()).double().eval(), samples()
    held = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    found = copied(model, "fold", x).model
    own = [t for t in (*found.parameters(), *found.buffers()) if t.data_ptr() not in held]
    assert len(own) == 2 * KINDS["plain"]  # a weight and a bias of each folded layer
    laid = copied(model, "channels_last", x).model
    own = [name for name, t in laid.named_parameters() if t.data_ptr() not in held]
    assert own == ["block.first.weight", "conv.weight", "grouped.weight"]


def test_the_copy_lives_as_long_as_the_model_and_is_made_once():
    model, x = drawn(Net()).double(), samples()
    first = copied(model, "fold", x).model
    assert copied(model, "fold", samples(2)).model is first
    assert copied(model, "fold", x, None).model is first
    seen = weakref.ref(model)
    del model, first
    gc.collect()
    assert seen() is None


def change_in_place(model):
    with torch.no_grad():
        model.conv.weight.mul_(1.5)


def change_data(model):
    model.conv.weight.data.mul_(1.5)  # counts no version


def change_state(model):
    model.load_state_dict(drawn(Net(), seed=8).double().state_dict())


def change_statistics(model):
    model.train()
    model(samples(8))


def change_type(model):
    model.float()
    model.conv.weight.data *= 1.5
    model.double()


def change_part(model):
    model.head = nn.Sequential(nn.Linear(24, 5)).double()


def change_attribute(model):
    model.kind = "its output is read twice"


@pytest.mark.parametrize(
    "change",
    [change_in_place, change_data, change_state, change_statistics, change_type, change_part, change_attribute],
)
@pytest.mark.parametrize("form", ["fold", "fold+channels_last"])
def test_a_change_of_the_model_is_seen(change, form):
    model, x = drawn(Net()).double(), samples()
    copied(model, form, x)
    before = model.eval()(x)
    change(model)
    found = copied(model, form, x)
    assert isinstance(found, Prepared)
    model.eval()
    assert not torch.equal(model(x), before)
    assert_same(model, found, x, 1e-12)


def test_auto_keeps_the_fastest_and_times_it_once(monkeypatch):
    model, x = drawn(Net()).double().eval(), samples(20)
    taken, clock = [], [0.0]
    real = choose.passes

    def timed(runner, some, along):
        form = getattr(runner, "form", ())
        taken.append(form)
        clock[0] += {(): 1.0, ("fold",): 0.8, ("channels_last",): 0.9}.get(form, 0.5)
        return real(runner, some, along)

    monkeypatch.setattr(choose, "passes", timed)
    monkeypatch.setattr(choose.time, "perf_counter", lambda: clock[0])
    assert copied(model, "auto", x).form == ("fold", "channels_last")
    assert taken[:4] == taken[4:8] == [(), ("fold",), ("channels_last",), ("fold", "channels_last")]
    assert len(taken) == 16
    assert copied(model, "auto", samples(20, seed=7)).form == ("fold", "channels_last")
    change_in_place(model)
    assert copied(model, "auto", x).form == ("fold", "channels_last")
    assert len(taken) == 16, "decided once"
    copied(model, "auto", samples(20, (3, 10, 10)))
    assert len(taken) == 32, "another shape, another choice"


def test_auto_stays_with_the_model_where_nothing_is_faster(monkeypatch):
    model, x = drawn(Net()).double().eval(), samples()
    monkeypatch.setattr(choose.time, "perf_counter", iter(range(1000)).__next__)  # every pass takes as long
    assert copied(model, "auto", x).model is model
    assert not choose._KNOWN[model].copies
    result = eb.recipe("pgd", eps=0.1, steps=2, prepare="auto")(model, x, torch.zeros(5, dtype=torch.int64))
    assert result.prepared is None


# ---------------------------------------------------------------------------------------------------- whole attacks


def judged(model, result, target):
    with torch.no_grad():
        outputs = model(result.perturbed)
    torch.testing.assert_close(result.outputs, outputs, rtol=0, atol=0)
    assert torch.equal(result.success, outputs.argmax(1) != target)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_attack_is_the_same_but_for_rounding(form, dtype):
    model, x = classifier(dtype), samples(6, dtype=dtype)
    with torch.no_grad():
        target = model(x).argmax(1)
    for name, options in (("pgd", {"steps": 8}), ("deepfool", {"steps": 10}), ("alg1-5", {})):
        eps = None if name == "deepfool" else 1.0
        plain, fast = (
            eb.recipe(name, p=2.0, eps=eps, bounds=BOUNDS, prepare=how, **options)(model, x, target)
            for how in (None, form)
        )
        assert (plain.prepared, fast.prepared) == (None, form)
        atol = 1e-4 if dtype == torch.float32 else 1e-9
        torch.testing.assert_close(fast.perturbation, plain.perturbation, rtol=0, atol=atol)
        assert torch.equal(fast.success, plain.success)
        assert torch.equal(fast.forwards, plain.forwards)
        judged(model, fast, target)
    assert plain.success.any()


@pytest.mark.parametrize("name", ["best", "nearest", "linear-pixel-2"])
def test_searches_and_groups_take_copies_too(name):
    model, x = classifier(), samples(4)
    with torch.no_grad():
        target = model(x).argmax(1)
    options = {} if name == "linear-pixel-2" else {"passes": 30}
    eps = None if name == "nearest" else 0.3
    attack = eb.recipe(name, eps=eps, bounds=BOUNDS, prepare="fold", **options)
    result = attack(model, x, target)
    assert result.prepared == "fold"
    judged(model, result, target)
    several = attack.over(model, x, target, eps=[0.1, 0.3], nested=name == "best")
    assert [r.prepared for r in several] == ["fold", "fold"]


def test_success_is_the_models_own_also_at_the_edge(monkeypatch):
    """A copy that is off by rounding, at samples whose two best scores are equal but for less than that."""
    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        model.bias.copy_(torch.tensor([1e-6, 0.0]))

    class Off(nn.Module):
        def forward(self, x):
            return model(x) * torch.tensor([1.0 - 4e-6, 1.0 + 4e-6], dtype=x.dtype)

    monkeypatch.setattr(copies, "folded", lambda twin: (Off(), 1))
    x = torch.tensor([[1.0, 1.0], [1.0, 0.8]], dtype=torch.float64)  # class 0 by 1e-6, and by far
    assert bool((Off()(x[:1]).argmax(1) == 1).all()), "the copy takes the first for a success as it is"
    target = torch.zeros(2, dtype=torch.int64)
    attack = eb.recipe("alg1-5", p=2.0, eps=0.2, prepare="fold")
    result = attack(model, x, target)
    assert result.prepared == "fold"
    assert result.success.all()
    assert eb.Status.ALREADY not in result.status
    assert result.norm[0] > 0
    plain = eb.recipe("alg1-5", p=2.0, eps=0.2)(model, x, target)
    assert result.status == plain.status
    assert (result.forwards - plain.forwards).tolist() == [1, 0], "the model was asked once, where it was close"
    judged(model, result, target)


@pytest.mark.parametrize("name", ["linear-lp-4", "quadratic-lp"])
def test_regression_from_the_models_own_output(name):
    model, x = drawn(Net()).double().eval(), samples(3)
    plain, fast = (
        eb.recipe(name, p=2.0, eps=0.3, bounds=BOUNDS, prepare=how)(model, x) for how in (None, "fold+channels_last")
    )
    assert fast.prepared == "fold+channels_last"
    torch.testing.assert_close(fast.gain, plain.gain, rtol=1e-6, atol=0)
    torch.testing.assert_close(fast.perturbation, plain.perturbation, rtol=0, atol=1e-5)
    assert (fast.gain > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_made_of_a_residual_of_rounding(dtype):
    """Without dither the squared error from f(x) has no gradient at x; the rounding of a copy must not give it one."""
    model, x = drawn(Net()).to(dtype).eval(), samples(3, dtype=dtype)
    attack = eb.Attack(
        constraint=eb.LpBall(p=2.0, eps=0.3),
        objective=eb.SquaredError(),
        schedule=eb.Schedule(steps=2),
        prepare="fold+channels_last",
    )
    result = attack(model, x)
    assert result.prepared == "fold+channels_last"
    assert result.status == (eb.Status.ZERO_GRADIENT,) * 3
    assert not result.perturbation.any()


def test_surrogates_are_copied_too():
    model, x = drawn(Net()).double().eval(), samples(4)
    others = [drawn(Net(), seed=4).double(), nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).double()]
    options = {"p": 2.0, "eps": 0.5, "surrogates": others}
    plain = eb.recipe("ensemble", **options)(model, x)
    with pytest.warns(eb.EpsballWarning, match="is not used") as told:
        fast = eb.recipe("ensemble", prepare="fold", **options)(model, x)
    assert told[0].filename == __file__
    assert fast.prepared == "fold, none"
    torch.testing.assert_close(fast.perturbation, plain.perturbation, rtol=0, atol=1e-9)


def test_the_model_comes_back_as_it_was():
    model, x = drawn(Net()), samples(4, dtype=torch.float32)
    model.train()
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    model.head[0].weight.grad = torch.ones_like(model.head[0].weight)
    state = copy.deepcopy(model.state_dict())
    before = [(m.training, sorted(m.__dict__)) for m in model.modules()], [p.requires_grad for p in model.parameters()]
    held = [id(p) for p in model.parameters()]
    for form in (*FORMS, "auto"):
        eb.recipe("pgd", eps=0.1, steps=2, prepare=form)(model, x, torch.zeros(4, dtype=torch.int64))
        after = (
            [(m.training, sorted(m.__dict__)) for m in model.modules()],
            [p.requires_grad for p in model.parameters()],
        )
        assert after == before
        assert [id(p) for p in model.parameters()] == held
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True))
        assert torch.equal(model.head[0].weight.grad, torch.ones_like(model.head[0].weight))
        assert model.norm.weight.grad is None


def test_a_model_that_keeps_what_it_saw_keeps_tensors():
    class Keeping(Net):
        def forward(self, x):
            self.kept = x
            return super().forward(x)

    model = drawn(Keeping()).double()
    eb.recipe("pgd", eps=0.1, steps=2, prepare="fold")(model, samples())
    assert type(model.kept) is torch.Tensor


def test_random_starts_alone_need_no_copy():
    result = eb.recipe("random-linf", eps=0.1, prepare="fold")(drawn(Net()).double(), samples())
    assert result.prepared is None


# ------------------------------------------------------------------------------------------------ names and requests


@pytest.mark.parametrize("value", ["fast", "", "fold,channels_last", "auto+fold", "auto+bfloat16", True, 3, "fold+"])
def test_unknown_forms_are_refused_with_the_choices(value):
    with pytest.raises(eb.InputError, match=r'expected prepare as None, "auto", .*fold, channels_last, bfloat16, comp'):
        eb.recipe("pgd", eps=0.1, prepare=value)


def test_names_have_one_order():
    assert check_prepare("channels_last+fold") == "fold+channels_last"
    assert check_prepare("compile+auto") == "auto+compile"
    assert eb.recipe("pgd", eps=0.1, prepare="channels_last+fold").prepare == "fold+channels_last"
    with pytest.raises(eb.InputError, match="without compile for a quadratic"):
        eb.recipe("quadratic-lp", eps=0.1, prepare="fold+compile")


def test_bfloat16_on_request_where_there_is_hardware(monkeypatch):
    model, x = drawn(Net()).eval(), samples(6, dtype=torch.float32)
    target = model(x).argmax(1)
    attack = eb.recipe("pgd", p=2.0, eps=0.8, steps=5, bounds=BOUNDS, prepare="bfloat16")
    monkeypatch.setattr(copies, "has_bfloat16", lambda device: False)
    with pytest.warns(eb.EpsballWarning, match="hardware"):
        assert attack(model, x, target).prepared is None
    monkeypatch.setattr(copies, "has_bfloat16", lambda device: True)
    model = copy.deepcopy(model)
    result = attack(model, x, target)
    assert result.prepared == "bfloat16"
    assert result.perturbed.dtype == torch.float32
    judged(model, result, target)
    plain = eb.recipe("pgd", p=2.0, eps=0.8, steps=5, bounds=BOUNDS)(model, x, target)
    assert (result.gain - plain.gain).abs().max() < 0.1 * plain.gain.abs().max()
    with pytest.warns(eb.EpsballWarning, match="float32"):
        assert attack(model.double(), x.double(), target).prepared is None


def test_without_a_compiler_the_model_itself_serves(monkeypatch):
    def refused(module):
        def run(x):
            raise RuntimeError("no C++ compiler")

        return run

    monkeypatch.setattr(torch, "compile", refused)
    model, x = drawn(Net()).double(), samples()
    with pytest.warns(eb.EpsballWarning, match="no C"):
        assert eb.recipe("pgd", eps=0.1, steps=2, prepare="compile")(model, x).prepared is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eb.recipe("pgd", eps=0.1, steps=2, prepare="auto+compile")(model, x)


def test_compiled_copies_are_called_as_the_loop_calls_them(monkeypatch):
    """Without compiling: eager for one sample, and other forms inside."""
    sizes = []

    def noting(module):
        def run(x):
            sizes.append(len(x))
            return module(x)

        return run

    monkeypatch.setattr(torch, "compile", noting)
    model, x = classifier(), samples(6)
    plain, fast = (eb.recipe("pgd", p=2.0, eps=1.0, steps=10, prepare=how)(model, x) for how in (None, "fold+compile"))
    assert fast.prepared == "fold+compile"
    assert 1 not in sizes
    assert len(set(sizes)) > 1
    torch.testing.assert_close(fast.perturbation, plain.perturbation, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_compiled_for_shrinking_batches_and_several_classes():
    layers = [nn.Conv2d(3, 4, 3), norm(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 4)]
    model, x = drawn(nn.Sequential(*layers)).eval(), samples(6, dtype=torch.float32)
    try:
        torch.compile(lambda a: a * 2.0)(torch.zeros(3, 2))
    except Exception as error:  # whatever the compiler raises where there is none
        pytest.skip(f"nothing can be compiled here: {type(error).__name__}")
    target = model(x).argmax(1)
    for name, eps in (("pgd", 1.0), ("deepfool", None)):
        plain, fast = (eb.recipe(name, p=2.0, eps=eps, prepare=how)(model, x, target) for how in (None, "compile"))
        assert fast.prepared == "compile"
        torch.testing.assert_close(fast.norm, plain.norm, rtol=1e-2, atol=1e-4)
        judged(model, fast, target)
    assert fast.success.all()


class Rounding(nn.Module):
    """Scores of a rounded input; with the flag `straight` gradients pass the rounding as if it were not there."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
        self.straight = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rounded = (8 * x).round() / 8
        return self.body(x + (rounded - x).detach() if self.straight else rounded)


def test_a_copy_is_not_used_after_a_flag_changed_its_gradients() -> None:
    torch.manual_seed(0)
    model, x = Rounding().eval(), torch.rand(6, 1, 6, 6)
    with torch.no_grad():
        model(x)
        target = model(x).argmax(1)
    attack = eb.recipe("fgsm", eps=0.2, prepare="fold")
    attack(model, x, target)
    model.straight = True
    fresh = eb.recipe("fgsm", eps=0.2)(model, x, target)
    assert bool((fresh.perturbation != 0).any())
    assert torch.allclose(attack(model, x, target).perturbed, fresh.perturbed, atol=1e-5)
