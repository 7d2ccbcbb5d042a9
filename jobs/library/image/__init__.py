"""Pictures made from photos, from file to file.

Read `spec.py` (what may be asked for), `sources.py` (which photos), `photo.py` (a file as an
upright sRGB picture, or the reason why not), `frame.py` (sizes and crops), `render.py` (a variant
of it), `facts.py` (what is told about it) and `blurhash.py` (its placeholder).

Rule 1: Pillow is imported by `photo.py`, `render.py`, `facts.py` and `blurhash.py` only, and these
only inside a chunk. Rule 2: the same file and spec give the same bytes.
"""
