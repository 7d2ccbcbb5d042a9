"""How fast Drayman is, one question a file in `questions/`; `python -m benchmarks` asks them.

Numbers come from a real `drayman up` on this machine, with every acknowledgement durable. Ray's
processes and the load share the cores, so compare medians and ratios, not single runs. Each
question warms up, repeats what it measures, and says in its file what it does not show.
"""
