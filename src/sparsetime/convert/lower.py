"""From an exported ATen graph to a draft: each operator becomes operations of the plan, or a dense island."""

from __future__ import annotations

from torch.export import ExportedProgram

from sparsetime.convert.attention import join_attention
from sparsetime.convert.draft import Draft
from sparsetime.convert.einsum import products_of_sums
from sparsetime.convert.lowering import Lowering
from sparsetime.convert.norms import affine_into_norms, join_norms
from sparsetime.convert.operators import HANDLERS

__all__ = ["lower"]


def lower(program: ExportedProgram, name: str, strict: bool = False) -> Draft:
    """Translate an exported program.

    Args:
        program: functional, as `export` gives it; one frame (1, C, H, W) float32 goes in.
        name: of the network.
        strict: raise where an operation would become a dense island.

    Raises:
        CompileError: naming the operation and its source line.
    """
    draft = Draft(name)
    products_of_sums(program)
    join_norms(program)
    join_attention(program)
    Lowering(program, draft, HANDLERS, strict).run()
    draft.remove_dead()
    affine_into_norms(draft)
    return draft
