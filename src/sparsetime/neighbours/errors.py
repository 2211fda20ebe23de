"""What another format cannot say."""

__all__ = ["ExportError"]


class ExportError(ValueError):
    """A network holds something that the other format cannot say; names the operation and what would help."""
