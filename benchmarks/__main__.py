"""``python -m benchmarks``: the tables of speed. ``python -m benchmarks.evidence`` judges the score."""

from benchmarks.speed import main

main()
