"""From a module to its sparse form, and back."""

from sparsetime.convert.network import SparseNetwork, unsparsify
from sparsetime.convert.sparsify import SparsifyError, sparsify

__all__ = ["SparseNetwork", "SparsifyError", "sparsify", "unsparsify"]
