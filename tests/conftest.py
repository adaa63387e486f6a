"""Settings that every test shares."""

import os

# before mlflow is imported: its own check for pytest comes too late
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
