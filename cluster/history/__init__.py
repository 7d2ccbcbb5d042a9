"""What is over: finished jobs and their attempts as date-partitioned Parquet, for SQL and for us.

rows     the two tables, and how a job becomes a row of them
writer   written by the compactor, merged when many, deleted when old
reader   one job by its id, or a page of them
"""
