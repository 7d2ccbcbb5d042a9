"""What is durable: objects under names, the journal of events, the files of jobs.

Read `contract.py` (what a store of objects promises), then `local.py`, `remote.py` and `memory.py`
(three that keep it) and `objects.py` (a store from a URL, and how it is put to the test). On them
stand `segment.py` (one group commit as Parquet), `journal.py` (the order of commits, and who may
write the next), `identity.py` (is this the journal that belongs here?) and `files.py` (outputs and
logs of jobs).

Everything here is synchronous: it is called from one I/O thread, or from a worker's child.
"""
