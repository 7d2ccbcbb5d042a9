"""What the API answers and takes: the JSON of version 1, one resource a file as in `routes/`.

Rule 1: every field is always there, null when it does not apply, so that a client can read it
without asking whether it exists. Rule 2: moments are RFC 3339 in UTC, durations end in `_s`.
Rule 3: no path of the store leaves; what can be fetched is a link.
"""
