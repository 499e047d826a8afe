"""Frozen teachers: where their weights come from, their own view of the input, and what is compared.

build           the run's teacher, or None
Teacher         images -> features; frozen, gradients pass through to the image
TeacherError    a teacher that is not what the spec says; never replaced by a random one
"""

from trainer.teachers.errors import TeacherError
from trainer.teachers.frozen import Teacher, build, compute_dtype

__all__ = ["Teacher", "TeacherError", "build", "compute_dtype"]
