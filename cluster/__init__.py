"""What keeps and runs jobs: the queue's rules, the store, the manager, workers, the gateway.

Read `queue/` first (the rules, pure), then `store/` (what is durable), then `manager.py` (the one
commit loop around the rules), `worker.py` (who runs the work) and `gateway.py` (the way in).
`protocol.py` holds what they say to each other; `actors.py` alone knows Ray.
"""
