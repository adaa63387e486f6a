"""What the exit codes of ``ww-opt`` mean."""

__all__ = ["BAD_INPUT", "FAILED", "INTERRUPTED", "NOTHING_COMPLETED"]

FAILED, BAD_INPUT, NOTHING_COMPLETED, INTERRUPTED = 1, 2, 3, 130
