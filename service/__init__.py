"""Lets people in: the HTTP API, the client, the command line, and how all of it is started.

Read `ports.py` (what the API needs from below), then `app.py` (how it is put together),
`submission.py` (from a request to a JobSpec), `schemas/` and `showing.py` (what is answered),
`problems.py` (how it refuses) and `auth.py` (who is asking). `routes/` holds one resource a file.
`client.py` and `cli.py` stand on the other side of the wire and import nothing of this.
"""
