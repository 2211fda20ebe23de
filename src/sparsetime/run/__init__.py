"""From a network to a plan file, and a plan file over video: what `sparsetime compile` and `sparsetime run` do.

`compile_file` is imported from `sparsetime.run.planning`: running a plan does not wait for the converter.
"""

from sparsetime.run.session import run_file
from sparsetime.run.sources import Source, SourceError

__all__ = ["Source", "SourceError", "run_file"]
