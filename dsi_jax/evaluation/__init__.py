"""Evaluation: rankings, metrics, baselines and the report of a run."""
