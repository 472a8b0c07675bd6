"""Notebooks executed in order by ``run_pipeline.py``: profile, kernel, journal, report."""

import sys

# jsonschema imports this, where it is installed, for addresses in schemas, of which notebooks have none. That takes a
# second, more than all other imports together.
sys.modules.setdefault("rfc3987_syntax", None)
