"""From the finished shards to the files that a run leaves: rows, examples, perturbed inputs, manifest and report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from epsball.experiments.archive import Archive
from epsball.experiments.collect import examples_arrays, write_perturbed
from epsball.experiments.grid import distance_grid
from epsball.experiments.manifest import manifest
from epsball.experiments.measures import distances_table, measure
from epsball.experiments.pictures import PictureFolder
from epsball.experiments.plan import Plan
from epsball.experiments.rows import Rows, write_results
from epsball.experiments.shard import ARRAYS, PERTURBED, ROWS, Shared
from epsball.experiments.storage import write_json, write_table
from epsball.metrics import Robustness

__all__ = ["finish"]

# Of the rows, what the manifest and its warnings count.
_COUNTED = ("status", "success", "norm", "target", "clean_prediction")


def finish(
    plan: Plan,
    shared: Shared,
    shards: Sequence[Path],
    folder: Path,
    facts: dict[str, Any],
    seconds: float,
) -> tuple[dict[str, Any], Robustness | None]:
    """Write the files of the run from the folders of its shards; facts: what else the manifest is to say.

    Returns the manifest and, of `robustness`, what was measured.
    """
    from epsball.report.page import write_page

    config, work = plan.config, shared.work
    rows = Rows([shard / ROWS for shard in shards])
    counted = rows.only(*_COUNTED)
    arrays = [shard / ARRAYS for shard in shards]
    measured = None
    if shared.distance is not None:
        r2 = torch.from_numpy(np.concatenate([Archive.read(file, "r2") for file in arrays]))
        measured = measure(rows.only(*_COUNTED, "forwards", "backwards"), plan.x, r2, config.p)
        distances = distances_table(measured, work.sample_id, work.target, work.clean[config.model])
        write_table(folder / "distances.parquet", distances)
    grid = config.eps or distance_grid(counted)
    if not work.eps:
        rows, counted = (each.spread(grid, work.x.dtype) for each in (rows, counted))

    write_results(folder / "results.parquet", rows)
    with Archive(folder / "examples.npz") as archive:
        archive.write(examples_arrays(shared.examples, work, grid[len(grid) // 2], arrays))
    if shared.perturbed_at is not None:
        pictures = PictureFolder(folder / "png") if config.save == "png" else None
        files = [shard / PERTURBED for shard in shards]
        write_perturbed(folder / "perturbed.npz", work, shared.perturbed_at, files, pictures)
    content = manifest(plan, work, grid, counted, seconds, measured) | facts
    write_json(folder / "manifest.json", content)
    write_page(folder)
    return content, measured
