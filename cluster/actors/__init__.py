"""Everything that knows Ray: thin actors around plain classes, and the ports between them.

Rule 1: every `ray.remote` stands here. Rule 2: an actor adds a place to run and nothing else.
Rule 3: mutating calls are never retried by Ray (`max_task_retries=0`): whoever calls repeats with
the same number, so that the receiver can tell. Rule 4: nothing is imported here, and a module
imports only what its own process needs: there are many workers, and each would hold it all.
"""
