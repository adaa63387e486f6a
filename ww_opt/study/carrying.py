"""What an earlier study hands on to a fresh one: where it lies, and which settings of it are tried first."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage

from ww_opt.search.coordinates import kind_of
from ww_opt.search.repeats import start_of
from ww_opt.search.starting import Carried, carried_of, remember_carried
from ww_opt.search.transfer import carried_over
from ww_opt.study.first_use import database_file
from ww_opt.study.shared_storage import SharedStorage
from ww_opt.study.storages import StorageError, file_of, open_storage, reading, shown

__all__ = ["lay_carried"]

_LOG = logging.getLogger(__name__)
_N_NAMES = 5


def lay_carried(host: optuna.Study, earlier: str | optuna.Study | None, bounds: Mapping[str, BaseDistribution]) -> None:
    """Work out what is carried over, and keep it with a study that has no trials yet; a begun one stays as it is.

    Args:
        host: the study that is to begin.
        earlier: a study, or where one is: its name in the storage of ``host``, or ``NAME@STORAGE``.
        bounds: of the new space, by parameter.

    Raises:
        StorageError: the earlier study's storage cannot be read.
        ValueError: there is no such study, it has nothing to carry over, or it is ``host``.
    """
    source = None if earlier is None else _in_words(earlier)
    if source == f"study {host.study_name!r}":
        raise _itself(host)
    if host.get_trials(deepcopy=False):
        before = carried_of(host)
        if source is not None and (before is None or before.source != source):
            _LOG.warning(
                "Nothing is carried over from %s: study %r has trials already, and only a new one begins so. Choose "
                "another --study-name for that.",
                source,
                host.study_name,
            )
        return
    if earlier is None or source is None:
        remember_carried(host, None)
        return
    found = earlier if isinstance(earlier, optuna.Study) else _named(host, earlier)
    if found.study_name == host.study_name and _place(found) == _place(host):
        raise _itself(host)
    settings = carried_over(found, bounds)
    remember_carried(host, Carried(source, tuple(settings), _told(source, settings, bounds, bool(start_of(host)))))


def _itself(host: optuna.Study) -> ValueError:
    return ValueError(
        f"`carry_over` (--from) must name another study, but got {host.study_name!r}, which is this one: leave it out "
        "to go on with it, or choose another --study-name to begin a new one with its settings."
    )


def _told(
    source: str, settings: list[dict[str, float]], bounds: Mapping[str, BaseDistribution], has_start: bool
) -> str:
    left = dict.fromkeys(kind_of(name) or name for name in bounds if all(name not in own for own in settings))
    return (
        f"Carried over from {source}: the settings of {len(settings)} of its best trials, tried "
        f"{'after the first trial, which is what you came with' if has_start else 'first'}."
        + (f" It did not search {', '.join(left)}: that is left to the sampler." if left else "")
    )


def _in_words(earlier: str | optuna.Study) -> str:
    if isinstance(earlier, optuna.Study):
        address = _address(earlier)
        return f"study {earlier.study_name!r} in {shown(address) if address else 'memory'}"
    name, storage = _parts(earlier)
    return f"study {name!r}" if storage is None else f"study {name!r} in {shown(storage)}"


def _parts(reference: str) -> tuple[str, str | None]:
    """Name and storage; a URL may hold another ``@`` behind the first one."""
    name, at, storage = reference.partition("@")
    return (name, storage) if at else (reference, None)


def _named(host: optuna.Study, reference: str) -> optuna.Study:
    name, storage = _parts(reference)
    opened = host._storage if storage is None else _opened(storage)
    where = "the storage of this study" if storage is None else shown(storage)

    def load() -> optuna.Study | list[str]:
        names = [own for own in optuna.get_all_study_names(opened) if storage is not None or own != host.study_name]
        return optuna.load_study(study_name=name, storage=opened) if name in names else names

    found = reading(storage, load)
    if isinstance(found, optuna.Study):
        return found
    near = [*get_close_matches(name, found, _N_NAMES), *sorted(found)]
    some = list(dict.fromkeys(near))[:_N_NAMES]
    there = f"{', '.join(map(repr, some))}{f' and {len(found) - len(some)} more' if len(found) > len(some) else ''}"
    raise ValueError(
        f"`carry_over` (--from) must name a study that is there, but got {name!r}, and {where} has {there or 'none'}: "
        f"{'take one of these, or ' if found else ''}say where it is, NAME@sqlite:///path/to/studies.db."
    )


def _opened(storage: str) -> BaseStorage:
    """Open what is there already: a file would be made where none is."""
    file = file_of(storage)
    if file is not None and not file.exists():
        raise StorageError(
            f"`carry_over` (--from) must name a study in a storage that is there, but got {shown(storage)}, and there "
            f"is no {file}: correct the path, seen from {Path.cwd()}."
        )
    try:
        opened = open_storage(storage)
    except StorageError as error:
        raise StorageError(str(error).replace("--storage", "The storage of `carry_over` (--from)")) from error
    assert isinstance(opened, BaseStorage)
    return opened


def _place(study: optuna.Study) -> object:
    """Where a study lies, so that two ways of opening one file are told to be the same."""
    address = _address(study)
    file = None if address is None else database_file(address) if "://" in address else Path(address)
    return file.resolve() if file is not None else address or study._storage


def _address(study: optuna.Study) -> str | None:
    """URL of a database or path of a journal; ``None`` for other storages."""
    storage = study._storage
    if isinstance(storage, SharedStorage):
        return storage.address
    backend = getattr(storage, "_backend", storage)  # of Optuna's cache, or of a journal
    found = getattr(backend, "url", None) or getattr(backend, "_file_path", None)
    return None if found is None else str(found)
