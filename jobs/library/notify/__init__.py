"""What notifications share. Read `event.py` (what is told), then how it travels.

`post.py` for what goes over HTTP (webhooks, pushes), `letter.py` for mails.
"""
