"""Makes the process that workers are forked from end when its agent ends. Only that process loads this module.

multiprocessing ends it when the agent's end of a pipe closes, but hands that end to every worker: workers would wait
for the end of their parent, and their parent for theirs, and go on training without an agent.
"""

from trainer.elastic.stop import die_with_parent

die_with_parent()
