"""``python -m benchmarks``: the tables of speed and memory.

``python -m benchmarks.overhead``: what looks cost in a run; ``python -m benchmarks.freezing``: what freezing saves.
``python -m benchmarks.evidence`` judges the score.
"""

import click

from benchmarks import gpu, memory, speed


@click.command()
@click.option("--everything", is_flag=True, help="Wait two more minutes, for all of WeightWatcher's columns.")
def main(everything: bool) -> None:
    """Measure against the limit, against WeightWatcher where it is installed, and on a GPU where there is one."""
    speed.main(everything=everything)
    memory.main()
    gpu.main()


main()
