"""Products with the Jacobian against torch.autograd.functional.jacobian, layer by layer, and what they cost."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import epsball as eb
from epsball.local_models import GaussNewton
from epsball.local_models.products import METHODS, Products
from helpers import Counting, generator


class Attention(nn.Module):
    """Self-attention by the fused kernel, whose backward pass has no derivative on the CPU."""

    def __init__(self):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        query, key, value = (layer(x)[:, None] for layer in self.maps)
        return functional.scaled_dot_product_attention(query, key, value)[:, 0]


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cells, self.last = kind(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x):
        return self.last(self.cells(x)[0])


class Partly(nn.Module):
    """Outputs that ignore most inputs, one of them all of them."""

    def forward(self, x):
        return torch.stack([x[:, 0].sin(), x[:, 1] * x[:, 0], torch.ones_like(x[:, 0])], 1)


class Constant(nn.Module):
    """A graph to the input, and a derivative of zero."""

    def forward(self, x):
        return torch.zeros_like(x[:, :2]) + 0.0 * x[:, :2]


LAYERS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)), (6,)),
    "relu": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 9)), (6,)),
    "conv": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.SiLU(), nn.Conv2d(3, 1, 3)), (2, 5, 4)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 2, stride=2), nn.Sigmoid()), (2, 3, 2)),
    "batch norm": (lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Tanh()), (2, 3, 3)),
    "max pool": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3)), (2, 4, 4)),
    "lstm": (lambda: Recurrent(nn.LSTM), (3, 4)),
    "gru": (lambda: Recurrent(nn.GRU), (3, 4)),
    "attention": (Attention, (5, 4)),
    "partly": (Partly, (7,)),
    "constant": (Constant, (4,)),
    "views": (lambda: nn.Flatten(), (2, 3)),
}


def model_of(name, dtype=torch.float64):
    build, shape = LAYERS[name]
    model, draw = build().to(dtype), generator(3)
    with torch.no_grad():
        for parameter in [*model.parameters(), *model.buffers()]:
            if parameter.is_floating_point():
                parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64).abs() * 0.7 - 0.2)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.add_(0.5)
    x = torch.randn(3, *shape, generator=draw, dtype=torch.float64).to(dtype)
    return model.eval().requires_grad_(False), x


def jacobian_of(model, x):
    """(B, K, M), one sample at a time, with plain attention."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        whole = [torch.autograd.functional.jacobian(lambda z: model(z[None])[0].flatten(), sample) for sample in x]
    return torch.stack(whole).flatten(2)


def vectors(count, shape, seed, dtype=torch.float64):
    return torch.randn(count, *shape, generator=generator(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LAYERS)
def test_products_are_those_of_the_jacobian(name, method, batched):
    model, x = model_of(name)
    jacobian = jacobian_of(model, x)
    rows, columns = jacobian.shape[1:]
    if name == "attention" and method == "double-backward":
        products = Products(model, x, method, batched=batched)
        with pytest.raises(eb.InputError, match=r"double-backward.*a layer refuses.*use a linear recipe"):
            products.jvp(torch.ones(3, columns, dtype=x.dtype))
        return
    products = Products(model, x, method, batched=batched)
    torch.testing.assert_close(products.outputs, model(x), rtol=1e-12, atol=1e-12)
    for seed in range(2):  # a second product comes from the same linearisation
        u, w = vectors(3, (columns,), seed), vectors(3, (rows,), 10 + seed)
        torch.testing.assert_close(products.jvp(u), torch.einsum("bkm,bm->bk", jacobian, u), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(products.vjp(w), torch.einsum("bkm,bk->bm", jacobian, w), rtol=1e-9, atol=1e-11)
    for count in (1, 4):
        u, w = vectors(count, (3, columns), 5), vectors(count, (3, rows), 6)
        torch.testing.assert_close(products.jvps(u), torch.einsum("bkm,nbm->nbk", jacobian, u), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(products.vjps(w), torch.einsum("bkm,nbk->nbm", jacobian, w), rtol=1e-9, atol=1e-11)
    assert not products.jvp(u[0]).requires_grad


@pytest.mark.parametrize("name", ["lstm", "gru", "attention", "conv"])
def test_in_float32_too(name):
    """Fused float32 kernels differ from those in float64."""
    model, x = model_of(name, torch.float32)
    jacobian = jacobian_of(*model_of(name))
    rows, columns = jacobian.shape[1:]
    products = Products(model, x, "auto", batched=False)
    u, w = vectors(3, (columns,), 1), vectors(3, (rows,), 2)
    torch.testing.assert_close(
        products.jvp(u.float()).double(), torch.einsum("bkm,bm->bk", jacobian, u), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        products.vjp(w.float()).double(), torch.einsum("bkm,bk->bm", jacobian, w), rtol=1e-4, atol=1e-4
    )


def test_auto_falls_back_by_itself_and_says_so():
    model, x = model_of("attention")
    products = Products(model, x, "auto", batched=True)
    assert (products.method, products.plain_attention, products.linearised) == ("double-backward", False, 1)
    products.jvp(torch.ones(3, 20, dtype=x.dtype))
    assert (products.method, products.plain_attention, products.linearised) == ("double-backward", True, 2)

    class NoSecond(torch.autograd.Function):
        """A backward pass that cannot be differentiated, and a forward-mode rule."""

        @staticmethod
        def forward(x):
            return x.sin()

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(inputs[0])
            ctx.save_for_forward(inputs[0])

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return gradient * ctx.saved_tensors[0].cos()

        @staticmethod
        def jvp(ctx, tangent):
            return tangent * ctx.saved_tensors[0].cos()

    point = vectors(3, (4,), 0)
    products = Products(NoSecond.apply, point, "auto", batched=False)
    u = vectors(3, (4,), 1)
    torch.testing.assert_close(products.jvp(u), u * point.cos(), rtol=1e-12, atol=0)
    torch.testing.assert_close(products.vjp(u), u * point.cos(), rtol=1e-12, atol=0)
    assert (products.method, products.extra, products.linearised) == ("forward-mode", 1, 3)

    def stuck(x):
        return NoSecond.apply(x.detach() + NoJvp.apply(x))

    class NoJvp(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return gradient

    with pytest.raises(eb.InputError, match=r"double-backward.*its backward pass cannot be differentiated"):
        Products(NoSecond.apply, point, "double-backward", batched=False).jvp(u)
    with pytest.raises(eb.InputError, match=r"forward-mode.*a layer refuses"):
        Products(stuck, point, "auto", batched=False).jvp(u)


def test_a_way_that_failed_is_not_tried_again_in_the_same_run():
    model, x = model_of("attention")

    class Run:
        def craft(self, z):
            return model(z)

    run, other = Run(), Run()
    u = torch.ones(3, 20, dtype=x.dtype)
    first = Products(run.craft, x, "auto", batched=False)
    image = first.jvp(u)
    again, elsewhere = (Products(r.craft, x, "auto", batched=False) for r in (run, other))
    torch.testing.assert_close(again.jvp(u), image, rtol=0, atol=0)
    torch.testing.assert_close(elsewhere.jvp(u), image, rtol=0, atol=0)
    assert [p.linearised for p in (first, again, elsewhere)] == [2, 1, 2]
    explicit = Products(run.craft, x, "double-backward", batched=False)
    assert not explicit.plain_attention


def test_a_model_without_a_gradient_is_refused():
    for cut in (lambda x: x.detach(), lambda x: x.argmax(1), lambda x: x.round().detach() + 1):
        with pytest.raises(eb.InputError, match=r"differentiable in its input.*remove detach"):
            Products(cut, vectors(2, (3,), 0), "auto", batched=False)


def gauss_newton(model, x, target, **options):
    return GaussNewton(model, x, target, eb.Quadratic(**options), batched=options.get("batched", False))


@pytest.mark.parametrize("name", ["mlp", "relu", "conv"])
def test_the_dense_jacobian_in_chunks(name):
    model, x = model_of(name)
    jacobian = jacobian_of(model, x)
    rows, columns = jacobian.shape[1:]
    for memory in (1.0, 3e-6):  # the second: one or a few vectors at a time
        local = gauss_newton(model, x, torch.zeros_like(model(x)), memory=memory)
        if memory < 1.0:
            local.fits = None
            local.options = eb.Quadratic(memory=3 * local.bytes_of_jacobian() / 1e9)
            assert len(local.basis(max(rows, columns))) > 1
        local.spent()
        torch.testing.assert_close(local.jacobian(), jacobian, rtol=1e-9, atol=1e-11)
        forwards, backwards, jvps = local.spent()
        assert forwards.tolist() == [0] * 3
        assert backwards.tolist() == [rows if rows <= columns else 0] * 3
        assert jvps.tolist() == [0 if rows <= columns else columns] * 3


def test_a_memory_budget_too_small_says_what_fits():
    model, x = model_of("mlp")  # 5 x 6 in float64: 240 bytes a sample
    with pytest.raises(eb.InputError, match=r"at least 7.2e-07 GB .* 3 samples \(5 x 6 each\), got 5e-07 GB.* fits 2;"):
        gauss_newton(model, x, torch.zeros(3, 5, dtype=x.dtype), memory=5e-7).jacobian()
    for bad in (-1.0, float("nan"), float("inf"), "1", True):
        with pytest.raises(eb.InputError, match="expected memory >= 0"):
            eb.Quadratic(memory=bad)
    with pytest.raises(eb.InputError, match="expected products as one of auto"):
        eb.Quadratic(products="reverse")


@pytest.mark.parametrize("products", METHODS)
def test_counts_are_per_sample_and_those_seen_from_outside(products):
    model, x = model_of("mlp")
    counting = Counting(model)
    local = gauss_newton(counting, x, torch.zeros(3, 5, dtype=x.dtype), products=products)
    forward_mode = products == "forward-mode"
    some = torch.tensor([True, False, True])
    local.vjp(torch.ones(3, 5, dtype=x.dtype), ~some)
    local.jvp(torch.ones(3, 6, dtype=x.dtype), some)
    local.jvps(torch.ones(2, 3, 6, dtype=x.dtype))
    local.vjps(torch.ones(4, 3, 5, dtype=x.dtype), some)
    local.value(torch.ones(3, 6, dtype=x.dtype))
    forwards, backwards, jvps = local.spent()
    assert jvps.tolist() == [4, 3, 4]
    assert forwards.tolist() == [1 + 4 * forward_mode, 1 + 3 * forward_mode, 1 + 4 * forward_mode]
    linearised = 0 if forward_mode else 1  # the backward pass whose graph gives Ju
    assert backwards.tolist() == [linearised + 4, linearised + 1, linearised + 4]
    assert counting.calls == [3] * (5 if forward_mode else 1)
    assert counting.backwards == 3 * (linearised + 5)  # a batch makes a product for all, and counts it for some
    assert [count.tolist() for count in local.spent()] == [[0] * 3] * 3
    for _ in range(2):  # both are kept, and counted once; not for a sample without a residual
        local.residual[1] = 0.0
        local.probe()
        local.gradient()
    assert local.spent()[1].tolist() == [2, 1, 2]
    again = local.recounted()  # for another run they count again
    again.probe()
    again.gradient()
    assert [count.tolist() for count in again.spent()[:2]] == [
        [1] * 3,
        [linearised + 2, linearised + 1, linearised + 2],
    ]


def test_ways_that_failed_are_counted():
    model, x = model_of("attention")
    local = gauss_newton(model, x, torch.zeros_like(x))
    local.jvp(torch.ones(3, 20, dtype=x.dtype))
    forwards, backwards, jvps = local.spent()
    assert (forwards.tolist(), backwards.tolist(), jvps.tolist()) == ([2] * 3, [2] * 3, [1] * 3)


def test_value_residual_gradient_and_the_model_elsewhere():
    model, x = model_of("mlp")
    jacobian, target, delta = jacobian_of(model, x), vectors(3, (5,), 4), vectors(3, (6,), 5)
    local = gauss_newton(model, x, target)
    residual = model(x) - target
    torch.testing.assert_close(local.residual, residual)
    torch.testing.assert_close(local.gradient(), torch.einsum("bkm,bk->bm", jacobian, residual))

    def value(d):
        return (residual + torch.einsum("bkm,bm->bk", jacobian, d)).square().sum(1)

    torch.testing.assert_close(local.value(delta), value(delta))
    offset = vectors(3, (6,), 6)
    moved = local.around(offset)
    torch.testing.assert_close(moved.value(delta), value(delta - offset))
    torch.testing.assert_close(moved.gradient(), torch.einsum("bkm,bk->bm", jacobian, moved.residual))
    torch.testing.assert_close(local.residual, residual)  # and this one stays
    index = torch.tensor([2, 0])
    local.spent()
    part = moved.take(index)
    torch.testing.assert_close(part.value(delta[index]), value(delta - offset)[index])
    torch.testing.assert_close(part.gradient(), moved.gradient()[index])
    forwards, backwards, jvps = part.spent()
    assert (forwards.tolist(), backwards.tolist(), jvps.tolist()) == ([0, 0], [0, 0], [1, 1])  # Jᵀr is known already


def test_zero_and_broken_jacobians_are_told_apart():
    def model(x):
        return torch.stack([x[:, 0] * x[:, 1], x[:, 2].sqrt()], 1)

    x = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 4.0], [1.0, 2.0, 0.0], [1.0, 2.0, -1.0]], dtype=torch.float64)
    local = gauss_newton(lambda z: z[:, :1] * z[:, 1:2], x, torch.zeros(4, 1, dtype=x.dtype))
    assert [t.tolist() for t in local.finite_and_flat()] == [[True] * 4, [False, True, False, False]]
    finite, flat = gauss_newton(model, x, torch.zeros(4, 2, dtype=x.dtype)).finite_and_flat()
    assert finite.tolist() == [True, True, False, False]
    assert not flat.any()


def test_shared_linearisations_count_the_way_that_failed_for_every_budget():
    model, x = model_of("attention")
    target = model(x).detach() + 0.1
    attack = eb.recipe("quadratic-lp", p=2, eps=1.0, memory=0.0)
    for eps, shared in zip((0.1, 0.2), attack.over(model, x, target, eps=[0.1, 0.2]), strict=True):
        alone = attack.with_eps(eps)(model, x, target)
        for name in ("forwards", "backwards", "jvps"):
            assert torch.equal(getattr(shared, name), getattr(alone, name)), (eps, name)
