"""Ready-made studies, one file each: one question in its first line, one STUDY."""
