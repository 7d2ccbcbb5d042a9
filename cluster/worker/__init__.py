"""Where handlers run: one worker process, its keepers, and the children they hold.

    worker      pulls assignments from the manager and reports, in its own loop
    executor    what the worker holds, from assignment to confirmed outcome
      backlog   what no child has yet, in order
      children  which slots there are, with which code, and when a child makes way
      watch     what runs: limits, graces, what is held up
      calls     what a running handler asks for
    slot        one child and what it was fed; the child's keeper outlives neither
    keeper      between worker and child: whatever an attempt leaves running dies with it
    child       runs `def` handlers one by one; child_async runs `async def` ones together
    attempt     what one handler's context does, and its outcome; reading is what it reads

The manager never imports from here, and a child never speaks to the manager but through its slot.
"""
