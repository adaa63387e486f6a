"""``python -m benchmarks.searches run [--cases a,b] [--methods a,b] [--seeds 0,1]``; ``judge`` prints the tables.

``rows`` prints what the layers' rows add to the foresight of the sampler.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

from benchmarks.evidence.kept import DATA
from benchmarks.searches.kept import SEARCH_CASES, SEEDS, UNTUNED, as_line, read_searches, run_searches
from benchmarks.searches.methods import METHODS, OURS
from benchmarks.searches.rows import rows_table
from benchmarks.searches.tables import judges, lines, trials_needed


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.searches")
    parser.add_argument("what", choices=("run", "judge", "rows"))
    parser.add_argument("--cases", default=",".join(case.name for case in SEARCH_CASES))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--folder", type=Path, default=DATA)
    options = parser.parse_args()
    if options.what == "judge":
        records = read_searches(options.folder)
        print("\n".join([*lines(records, OURS), "", *judges(records, OURS), ""]))
        for rival in sorted({own["method"] for own in records} - {OURS, UNTUNED}):
            if ", by " not in rival:
                needed = sorted(trials_needed(records, rival, OURS))
                print(f"Runs until the leader has what {rival} ends with: {needed}, median {median(needed):g}")
        return
    if options.what == "rows":
        for line in rows_table():
            print(line, flush=True)
        return
    cases = [case for case in SEARCH_CASES if case.name in options.cases.split(",")]
    seeds = [int(seed) for seed in options.seeds.split(",")]
    for record in run_searches(cases, options.methods.split(","), seeds, options.folder):
        print(as_line(record), flush=True)


if __name__ == "__main__":
    main()
