"""Notebooks executed in order by ``run_pipeline.py``: profile, kernel, journal, report."""
