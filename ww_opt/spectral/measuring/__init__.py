"""Weight matrices -> spectra, nulls, fits: the numbers of a row."""

__all__: list[str] = []
