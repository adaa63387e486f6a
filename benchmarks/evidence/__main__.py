"""``python -m benchmarks.evidence``: train what is missing, then judge every score."""
