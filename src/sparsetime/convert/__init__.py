"""From a module to its sparse form and back, and to a plan."""

from sparsetime.convert.compile import compile
from sparsetime.convert.draft import CompileError
from sparsetime.convert.network import SparseNetwork, unsparsify
from sparsetime.convert.sparsify import SparsifyError, sparsify

__all__ = ["CompileError", "SparseNetwork", "SparsifyError", "compile", "sparsify", "unsparsify"]
