"""One mail, sent once.

Read `server.py` (where mail is handed in, and one conversation with it), `message.py` (the mail as
bytes, with `headers.py`) and `ledger.py` (what is known of each recipient over all attempts).

Rule: aiosmtplib is imported by `server.py` only, and that only inside an attempt.
"""
