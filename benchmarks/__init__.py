"""How fast Drayman is, one question a file; `python -m benchmarks` answers them in turn.

Numbers come from a real `drayman up` on this machine, over HTTP, with every ack durable. Ray's
processes and the load share the cores, so compare medians and ratios, not single runs.
"""
