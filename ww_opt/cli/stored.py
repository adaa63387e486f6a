"""A study as it lies in the storage, for commands that only read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna

    from ww_opt.study.study import Study

__all__ = ["place_of", "stored", "study_and_place"]


def place_of(storage: str | None, directory: Path) -> str:
    """Where records lie: the storage that is named, else a database in the folder."""
    return storage or f"sqlite:///{(directory / 'studies.db').as_posix()}"


def study_and_place(study_file: str, storage: str | None, study_name: str | None, directory: Path) -> tuple[Study, str]:
    """Load a study's file as ``ww-opt run`` does, and say where its records lie."""
    from ww_opt.study.workers import Job

    place = place_of(storage, directory)
    changes: dict[str, object] = {} if study_name is None else {"name": study_name}
    return Job(study_file, place, directory, changes).study(), place


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
