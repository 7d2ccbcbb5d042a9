"""What browsers get: a page, modules and a stylesheet, as they stand here; nothing builds them.

Read `main.js` first, then one of `pages/`. `routes/dashboard.py` sends them.
"""
