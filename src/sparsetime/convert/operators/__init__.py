"""What ATen operators become, one function each."""

from sparsetime.convert.lowering import HANDLERS
from sparsetime.convert.operators import elementwise, joins, norms, weights, windows

__all__ = ["HANDLERS", "elementwise", "joins", "norms", "weights", "windows"]
