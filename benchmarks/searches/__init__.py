"""Searches side by side: what each one's pick is worth when it is trained afresh."""
