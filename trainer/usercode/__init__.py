"""User code: Python files that a run names. `reading` never executes them, `loading` does, in workers alone.

No torch, and nothing of masks or teachers: what a function is for is known where it is called.
"""
