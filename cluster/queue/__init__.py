"""The rules of the queue, pure and synchronous: no Ray, clock, entropy, I/O or asyncio.

Read `state.py` (where a task can be), `rules.py` (what an operator sets), `model.py` (what is
remembered), `events.py` (what can happen), then `engine.py` (`decide` what happens, `evolve` by
what happened) and `dispatch.py` (which task is next).
"""
