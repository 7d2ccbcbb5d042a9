"""What `table.import` and `table.export` share: records, schemas, models, sources, destinations.

Rule: importing this package costs nothing (no pyarrow), so that job code may register its models
with `table_model` in a module that every process loads.
"""

from jobs.library.table.models import table_model

__all__ = ["table_model"]
