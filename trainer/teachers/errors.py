"""What is wrong with a teacher, in one class: trainer.main ends the run with it."""


class TeacherError(Exception):
    """The teacher cannot be built as the spec says."""
