"""What calls over HTTP need. Read `place`, `addresses`, `transport`, `body`, then `exchange`.

`http_call.py` decides what becomes of an answer, with `later`.
"""
