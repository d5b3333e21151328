"""Output PSNR, error increase and their intervals against SciPy and NumPy, and the report's table against a count."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import epsball as eb
from epsball.metrics import psnr_curve
from epsball.metrics.intervals_student import student_interval, student_quantile
from epsball.report import PsnrCurves, psnr_table
from epsball.report.quality import quality_answer
from epsball.report.rows import COLUMNS, TEXT

EPS = (0.05, 0.2)


@given(st.integers(1, 3000), st.floats(0.5, 0.999))
def test_students_quantile_is_scipys(freedom, level):
    assert student_quantile(freedom, level) == pytest.approx(stats.t.ppf(0.5 + level / 2, freedom), rel=3e-6)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=150))
def test_students_interval_is_scipys(values):
    mean, low, high = student_interval([*values, math.inf, math.nan])
    spread = np.std(values, ddof=1) / math.sqrt(len(values))
    half = stats.t.ppf(0.975, len(values) - 1) * spread
    assert (mean, low, high) == pytest.approx((np.mean(values), mean - half, mean + half), rel=1e-5, abs=1e-9)


def test_students_interval_at_its_ends():
    assert student_interval([math.inf, math.inf])[0] == math.inf
    assert math.isnan(student_interval([])[0])
    assert student_interval([2.0])[0] == 2.0
    assert math.isnan(student_interval([2.0])[1])
    with pytest.raises(eb.InputError, match="level"):
        student_interval([1.0, 2.0], 1.0)


# The curve


def problem(outputs=(2, 3)):
    draw = torch.Generator().manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Unflatten(1, outputs)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    x = torch.rand(7, 5, generator=draw, dtype=torch.float64)
    return model, x, torch.randn(7, *outputs, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("batch_size", [3, 100])
def test_the_curve_is_measured_on_what_the_attack_returns(known, batch_size):
    model, x, y = problem()
    target = y if known else None
    attack = eb.recipe("linear-lp-2", p=2.0, eps=1.0)
    seen = []
    curve = psnr_curve(
        *(attack, model, x, target, EPS), peak=2.0, output_peak=3.0, seed=4, batch_size=batch_size, progress=seen.append
    )
    assert sum(seen) == 7
    with torch.no_grad():
        clean = model(x).numpy()
    reference = y.numpy() if known else clean
    before = ((clean - reference) ** 2).reshape(7, -1)
    np.testing.assert_allclose(curve.clean_error, before.sum(1), rtol=1e-12)
    for place, eps in enumerate(EPS):
        result = eb.recipe("linear-lp-2", p=2.0, eps=eps)(model, x, target, seed=4)
        with torch.no_grad():
            after = ((model(result.perturbed).numpy() - reference) ** 2).reshape(7, -1)
        np.testing.assert_allclose(curve.psnr_out[place], 10 * np.log10(9.0 / after.mean(1)), rtol=1e-9)
        eta = (result.perturbed - x).numpy()
        np.testing.assert_allclose(curve.psnr_in[place], 10 * np.log10(4.0 / (eta**2).mean(1)), rtol=1e-9)
        np.testing.assert_allclose(curve.error_increase[place], after.sum(1) - before.sum(1), rtol=1e-9, atol=1e-12)
        for name in ("forwards", "backwards", "jvps", "exact"):
            np.testing.assert_array_equal(getattr(curve, name)[place], getattr(result, name))
        expected = stats.t.interval(0.95, 6, curve.psnr_out[place].mean(), stats.sem(curve.psnr_out[place]))
        np.testing.assert_allclose(curve.mean(curve.psnr_out)[place, 1:], expected, rtol=1e-6)


def test_without_a_change_the_psnr_is_infinite_and_has_no_interval():
    model, x, _ = problem()
    curve = psnr_curve(eb.recipe("quadratic-lp", p=2.0, eps=1.0), model, x, None, [0.0])
    mean, low, high = curve.mean(curve.psnr_out)[0].tolist()
    assert mean == math.inf
    assert math.isnan(low)
    assert math.isnan(high)
    assert (curve.error_increase == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": torch.zeros(7, dtype=torch.int64)}, "reference outputs"),
        ({"target": torch.zeros(6, 2, 3, dtype=torch.float64)}, "a target each"),
        ({"target": torch.zeros(7, 2, dtype=torch.float64)}, "shape"),
        ({"eps": [0.2, 0.1]}, "increasing"),
        ({"batch_size": 0}, "batch_size"),
        ({"model": lambda x: (x > 0).long()}, "floating"),
        ({"model": lambda x: x[:1]}, "one output for each"),
    ],
)
def test_what_has_no_curve_is_refused(change, message):
    model, x, y = problem()
    arguments = {"attack": eb.recipe("linear-lp-2", eps=1.0), "model": model, "x": x, "target": y, "eps": EPS} | change
    with pytest.raises(eb.InputError, match=message):
        psnr_curve(**arguments)


# The report's table


def row(sample, attack, eps, psnr_out, **changes):
    values = dict.fromkeys(COLUMNS, 0.0) | dict.fromkeys(TEXT, "net")
    values |= {"sample_id": sample, "attack": attack, "eps": eps, "p": 2.0, "steps": 1, "status": "SUCCESS"}
    values |= {"target": None, "prediction": None, "clean_prediction": None, "success": True}
    values |= {"psnr_out": psnr_out, "psnr_in": 30.0 + sample, "error_increase": 2.0 * sample, "exact": sample > 0}
    return values | {"forwards": 2, "backwards": 3, "jvps": 4 + sample} | changes


def table(rows):
    return pa.Table.from_pylist(rows)


def test_psnr_table_by_hand():
    rows = [row(i, "b", 0.1, value) for i, value in enumerate((10.0, 14.0, 18.0, math.inf))]
    rows += [row(i, "a", 0.1, math.inf) for i in range(2)]
    first, second = psnr_table(table(rows))
    assert (first["attack"], second["attack"]) == ("b", "a")
    assert (first["n"], first["unmeasured"], first["psnr_out"]) == (4, 1, 14.0)
    # t = 4.302653 at 2 degrees of freedom, s = 4, n = 3.
    assert first["psnr_out_high"] - 14.0 == pytest.approx(4.302653 * 4 / math.sqrt(3), rel=1e-6)
    assert (first["psnr_in"], first["error_increase"], first["exact"]) == (31.5, 3.0, 75.0)
    assert (first["jvps"], first["passes"]) == (5.5, 10.5)
    assert second["psnr_out"] == math.inf


def test_the_answer_is_the_lowest_mean_that_is_no_noise():
    means = {("a", 0.1): 20.0, ("b", 0.1): 19.0, ("a", 0.2): 15.0, ("b", 0.2): 16.0, ("a", 0.3): 9.0}
    means |= {("random-l2", 0.2): 12.0}
    rows = [row(i, attack, eps, mean + i) for (attack, eps), mean in means.items() for i in (-1, 0, 1)]
    found = quality_answer(psnr_table(table(rows)), 25.0)
    assert found.eps == 0.2
    assert found.strongest["attack"] == "a"
    text = found.text.replace("\u00a0", " ")
    assert text.startswith("At eps = 0.2 the strongest attack run, a, brings the output PSNR from 25.0 dB without a")
    assert "perturbation to 15.0 dB" in text
    assert text.endswith("Random noise within the same eps leaves 12.0 dB.")
    assert "at the largest, a brings it to 9.0" in found.reason
    assert quality_answer([], None).strongest is None
    assert quality_answer(psnr_table(table([row(0, "a", 0.1, math.inf)])), None).strongest is None


def test_curves_hold_and_draw_the_numbers_of_the_table():
    rows = [row(i, a, e, 20.0 - 50 * e + i) for a in ("a", "random-l2") for e in EPS for i in range(3)]
    curves = PsnrCurves.from_table(table(rows), clean=22.0)
    numbers = {(r["attack"], r["eps"]): r for r in psnr_table(table(rows))}
    for over in ("psnr_in", "eps"):
        lines = {line.get_label(): line for line in curves.plot(over=over).get_lines()}
        drawn = [line.get_xydata().tolist() for line in lines.values()]
        for name in ("a", "random-l2"):
            mine = [numbers[name, eps] for eps in EPS]
            assert [[r[over], r["psnr_out"]] for r in mine] in drawn
    with pytest.raises(eb.InputError, match="over="):
        curves.plot(over="gain")
