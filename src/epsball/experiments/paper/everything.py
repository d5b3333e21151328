"""All of the paper's tables and figures in one folder, with one page and one table of rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from epsball import networks
from epsball.errors import InputError
from epsball.experiments.paper.common import write
from epsball.experiments.paper.figure1 import figure1
from epsball.experiments.paper.figure2 import COUNT, figure2
from epsball.experiments.paper.figure3 import figure3
from epsball.experiments.paper.figure4 import figure4
from epsball.experiments.paper.regressors import PANELS, chosen
from epsball.experiments.paper.setting import Setting
from epsball.experiments.paper.table3 import table3
from epsball.experiments.paper.tables import table1, table2

__all__ = ["everything"]

_MEASURED: dict[str, Callable[[Setting], str]] = {
    "table3": table3,
    "figure1": figure1,
    "figure2": figure2,
    "figure3": figure3,
    "figure4": figure4,
}
#: Where the rows of a table or figure lie in its folder.
_ROWS = {"table3": "distances.parquet", "figure3": "results.parquet", "figure4": "results.parquet"}


def everything(setting: Setting) -> str:
    """Make every table and figure, each in a folder of its own, then results.parquet and the page paper.html.

    results.parquet holds the rows of Table 3, Figure 3 and Figure 4, told apart by the column `artefact`. With
    `resume` the parts that an earlier run finished are read, and the results are those of an undisturbed run. Returns
    the verdicts on the paper's claims as Markdown.
    """
    from epsball.report.paper_page import claims_markdown, paper_page

    if setting.panels:
        raise InputError("expected no --panels: `paper all` makes them all; make single ones with `paper figure3` ...")
    setting.prepare()
    # What has to be trained is trained once, for all figures.
    trained = {panel.network: setting.weights_of(panel.network) for panel in chosen(setting, PANELS)}
    whole = replace(setting, weights={**setting.weights, **{name: file for name, file in trained.items() if file}})
    for name, make in _MEASURED.items():
        limit = min(setting.limit or COUNT, COUNT) if name == "figure2" else setting.limit
        make(replace(whole, out=setting.out / name, limit=limit))
    record = setting.record("all") | {"table1": table1(), "table2": table2()}
    for name in _MEASURED:
        record[name] = json.loads((setting.out / name / f"{name}.json").read_text(encoding="utf-8"))
    record["networks"] = _networks(record, whole.weights, setting.weights)
    write(setting.out, "results.parquet", _rows(setting))
    write(setting.out, "paper.html", paper_page(record, setting.out))
    write(setting.out, "paper.json", _without_pixels(record))
    text: str = claims_markdown(record)
    return text


def _networks(record: dict[str, Any], weights: Mapping[str, str], given: Mapping[str, str]) -> dict[str, Any]:
    """Return, for each network that was used, where its weights are from and their card, None where there is none."""
    used = [
        row["network"]
        for name in ("table3", "figure4")
        for row in record[name].get("rows", record[name].get("panels", []))
    ]
    found: dict[str, Any] = {}
    for network in dict.fromkeys(used):
        file = weights.get(network)
        try:
            card = networks.card(network, file)
        except InputError:  # weights from elsewhere have none
            card = None
        found[network] = {"weights": file or "shipped with epsball", "given": network in given, "card": card}
    return found


def _without_pixels(record: dict[str, Any]) -> dict[str, Any]:
    """Leave out the images of Figures 1 and 2, which are in the records of these figures."""
    examples = [
        {**panel, "examples": [_drop(example, "x", "perturbed") for example in panel["examples"]]}
        for panel in record["figure1"]["panels"]
    ]
    shown = [
        {**panel, "shown": {label: _drop(pictures, "input", "output") for label, pictures in panel["shown"].items()}}
        for panel in record["figure2"]["panels"]
    ]
    return {
        **record,
        "figure1": {**record["figure1"], "panels": examples},
        "figure2": {**record["figure2"], "panels": shown},
    }


def _drop(entry: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in keys}


def _rows(setting: Setting) -> Any:
    """Put the rows of all artefacts together; what an artefact does not measure is null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for name, file in _ROWS.items():
        rows = pq.read_table(setting.out / name / file)
        plain = [
            pa.field(field.name, field.type.value_type if pa.types.is_dictionary(field.type) else field.type)
            for field in rows.schema
        ]
        names = pa.array([name] * len(rows))
        tables.append(rows.cast(pa.schema(plain)).add_column(0, "artefact", names))
    return pa.concat_tables(tables, promote_options="permissive")
