"""Other houses' formats and tools. Each file here needs an extra of its own and is imported by its name.

sparsetime.neighbours.onnx          plans as ONNX graphs with their state on the outside     sparsetime[onnx]
sparsetime.neighbours.nir           plans as NIR graphs, as far as NIR can say them          sparsetime[nir]
sparsetime.neighbours.neurobench    sparse networks in NeuroBench's harness                  sparsetime[neurobench]
sparsetime.neighbours.keras         the delta activation layer for Keras 3                   sparsetime[keras]
"""

from sparsetime.neighbours.errors import ExportError

__all__ = ["ExportError"]
