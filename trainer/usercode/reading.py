"""A file of user code as it is on submission: read, digested, and looked at without executing it."""

import ast
import hashlib
from pathlib import PurePosixPath
from typing import NamedTuple

from trainer.contract import Code
from trainer.store.objects import read_object

MAX_BYTES = 1 << 20


class Wanted(NamedTuple):
    """The function that a file has to define."""

    name: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"def {self.name}({', '.join(self.arguments)})"


MASK = Wanted("mask", ("noise", "side", "num_visible", "landmarks"))
LOSS = Wanted("feature_loss", ("predicted", "wanted"))
TEACHER = Wanted("teacher", ())


class UnusableCode(ValueError):
    """A file that cannot be what the run needs; says where."""


def file_name(code: Code) -> str:
    """What messages call the file."""
    return PurePosixPath(code.uri).name


def read(code: Code) -> tuple[bytes, str]:
    """The file and its sha256. Raises StorageError, UnusableCode."""
    text = read_object(code.uri)
    if len(text) > MAX_BYTES:
        raise UnusableCode(f"{file_name(code)} has {len(text)} bytes; possible: up to {MAX_BYTES}")
    return text, hashlib.sha256(text).hexdigest()


def check(text: bytes, name: str, wanted: Wanted) -> None:
    """Raises UnusableCode for what is no Python, and for a file without the function. Executes nothing."""
    try:
        tree = ast.parse(text, name)
        # It knows of a `return` outside of a function and the like, and executes nothing either.
        compile(text, name, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise UnusableCode(f"{name}, line {error.lineno or 1}: SyntaxError: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise UnusableCode(f"{name} is no Python: {error or type(error).__name__}") from error
    for node in reversed(tree.body):
        if isinstance(node, ast.FunctionDef) and node.name == wanted.name:
            if not _takes(node.args, len(wanted.arguments)):
                raise UnusableCode(f"{name}, line {node.lineno}: {node.name} is called as {wanted}")
            return
    if not any(wanted.name in _names(node) for node in tree.body):
        raise UnusableCode(f"{name} defines no function {wanted.name}; expected is {wanted}")


def _takes(arguments: ast.arguments, count: int) -> bool:
    """Whether a function can be called with so many, by place."""
    places = len(arguments.posonlyargs) + len(arguments.args)
    needed = places - len(arguments.defaults)
    lacking = sum(default is None for default in arguments.kw_defaults)
    return needed <= count and (count <= places or arguments.vararg is not None) and not lacking


def _names(node: ast.stmt) -> set[str]:
    """What a statement of the file may define: an import or an assignment, also under an `if`."""
    found = {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
    found |= {(each.asname or each.name) for each in ast.walk(node) if isinstance(each, ast.alias)}
    return found | {each.name for each in ast.walk(node) if isinstance(each, ast.FunctionDef | ast.ClassDef)}
