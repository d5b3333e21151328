"""The memory of a run over many samples: `epsball evaluate` watched from outside, every half second.

The samples are scikit-learn's digits over and over with noise, in an .npz of 26 MB for 100,000 of them. What is plotted
is the memory that is the process's own (RssAnon of Linux), which pages of libraries and of mapped files are not.

    python -m benchmarks.memory [--samples 100000] [--out docs/figures]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from epsball import data
from epsball.report.style import new_figure, save


def write(path: Path, count: int) -> None:
    digits, draw = data.load("digits", split="test"), np.random.default_rng(0)
    assert digits.target is not None
    index = np.arange(count) % len(digits)
    noise = draw.normal(scale=0.05, size=(count, *digits.x.shape[1:])).astype(np.float32)
    np.savez(path, x=(digits.x.numpy()[index] + noise).clip(0.0, 1.0), y=digits.target.numpy()[index])


def own_memory(process: int) -> float:
    """Return the MB that a process holds for itself, 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def watched(samples: Path, out: Path, attacks: str) -> tuple[list[float], list[float], float]:
    """Run, and return the seconds, the MB at each, and the second at which the last samples were attacked."""
    words = ["evaluate", "--model", "digits-fcnn", "--data", str(samples), "--attacks", attacks, "--eps", "0.05,0.1"]
    command = [sys.executable, "-m", "epsball", *words, "--out", str(out)]
    started, seconds, held, attacked = time.monotonic(), [], [], 0.0
    shards = -1
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            seconds.append(time.monotonic() - started)
            held.append(own_memory(process.pid))
            found = sum(path.name != "results.parquet" for path in out.rglob("*.parquet"))
            shards, attacked = (found, seconds[-1]) if found > shards else (shards, attacked)
            time.sleep(0.5)
        if process.returncode:
            raise SystemExit(process.returncode)
    return seconds, held, attacked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--attacks", default="fgsm,alg1-10")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    figure = new_figure(6.4, 3.2)
    axes = figure.subplots()
    for count, style in ((given.samples // 10, "--"), (given.samples, "-")):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / "d.npz", count)
            seconds, held, attacked = watched(Path(folder) / "d.npz", Path(folder) / "r", given.attacks)
        during = [mb for second, mb in zip(seconds, held, strict=True) if 0.2 * attacked < second < attacked]
        half = len(during) // 2
        print(
            f"{count:,} samples: {seconds[-1]:.0f} s; largest MB while attacking {max(during):.0f}, of its first half "
            f"{max(during[:half]):.0f}, of its second {max(during[half:]):.0f}; largest at all {max(held):.0f}"
        )
        axes.plot(seconds, held, style, label=f"{count:,} samples")
        axes.axvline(attacked, color="0.6", linewidth=0.8, linestyle=":")
    axes.set(xlabel="seconds (dotted: the last samples are done, the report begins)", ylabel="MB held", ylim=(0, None))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    if given.out is not None:
        save(figure, given.out, "memory")


if __name__ == "__main__":
    main()
