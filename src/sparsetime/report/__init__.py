"""Reports: run directories in, one HTML page out that needs nothing else."""

from sparsetime.report.page import write_report
from sparsetime.report.picture import accuracy_figure_svg
from sparsetime.report.runs import ReportError, Run, read_run

__all__ = [
    "ReportError",
    "Run",
    "accuracy_figure_svg",
    "read_run",
    "write_report",
]
