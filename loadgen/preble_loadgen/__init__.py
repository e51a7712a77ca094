"""The load: traces, replay against a live cluster, and the report on it."""
