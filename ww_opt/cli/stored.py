"""A study as it lies in the storage: where that is, and for commands that only read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna

    from ww_opt.study.study import Study

__all__ = ["STORAGE_VARIABLE", "place_of", "stored", "study_and_place"]

STORAGE_VARIABLE = "WW_OPT_STORAGE"
"""Environment variable that stands for ``--storage``: what it holds is in no list of processes and no log."""


def place_of(storage: str | None, directory: Path, name: str | None, n_workers: int = 1) -> str:
    """Where records lie: the storage that is named, else where the study is in the folder already, else a new file.

    Without a name any file that is there will do. A new one is a journal for several workers, which write it three
    times as fast, else a database.
    """
    if storage:
        return storage
    database, journal = f"sqlite:///{(directory / 'studies.db').as_posix()}", str(directory / "studies.journal")
    if name is None:
        is_journal = Path(journal).is_file() and not (directory / "studies.db").is_file()
        return journal if is_journal else database
    if (directory / "studies.journal").is_file():  # else there is nothing to choose from
        for place in (database, journal):
            if stored(name, place) is not None:
                return place
    elif n_workers == 1 or stored(name, database) is not None:
        return database
    return journal if n_workers > 1 else database


def study_and_place(study_file: str, storage: str | None, study_name: str | None, directory: Path) -> tuple[Study, str]:
    """Load a study's file as ``ww-opt run`` does, and say where its records lie."""
    from ww_opt.study.workers import Job

    changes: dict[str, object] = {} if study_name is None else {"name": study_name}
    study = Job(study_file, "", directory, changes).study()
    return study, place_of(storage, directory, study.name)


def stored(name: str, storage: str) -> optuna.Study | None:
    """Load the records of a study by its name; ``None``, and nothing made, where there are none."""
    import optuna

    from ww_opt.study.storages import file_of, open_storage, reading

    file = file_of(storage)
    if file is not None and not file.is_file():
        return None
    opened = open_storage(storage)
    if opened is None or name not in reading(storage, lambda: optuna.get_all_study_names(opened)):
        return None
    return optuna.load_study(study_name=name, storage=opened)
