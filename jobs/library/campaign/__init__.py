"""Parts of `email.campaign`: read `template.py`, then `people.py`, the list and its mistakes."""
