"""What a run found, for people: tables, figures and one self-contained page, made of rows and a manifest alone."""

from epsball.report.figures import DistanceHistogram, ExampleGrid, FoolingCurves
from epsball.report.group_curves import FewestGroupsCurves
from epsball.report.latex import to_latex
from epsball.report.output_examples import OutputGrid
from epsball.report.page import write_page
from epsball.report.quality import psnr_table
from epsball.report.quality_figures import PsnrCurves
from epsball.report.rows import read_manifest, read_results
from epsball.report.tables import cost_table, fooling_table, to_csv, to_markdown, transfer_table

__all__ = [
    "DistanceHistogram",
    "ExampleGrid",
    "FewestGroupsCurves",
    "FoolingCurves",
    "OutputGrid",
    "PsnrCurves",
    "cost_table",
    "fooling_table",
    "psnr_table",
    "read_manifest",
    "read_results",
    "to_csv",
    "to_latex",
    "to_markdown",
    "transfer_table",
    "write_page",
]
