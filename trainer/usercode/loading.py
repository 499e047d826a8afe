"""User code as workers execute it. It runs with the worker's rights; what goes wrong in it is the run's own error."""

import linecache
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

from trainer.contract import Code
from trainer.store.objects import ObjectMissing
from trainer.usercode.reading import UnusableCode, Wanted, check, file_name, read

MAX_WORDS = 500


class UserCodeError(Exception):
    """Something is wrong in a file of user code: its name, and the line where there is one."""


class UserFunction:
    """A function of user code: read and checked now, executed by every process that calls it."""

    def __init__(self, code: Code, wanted: Wanted) -> None:
        """Raises UserCodeError where the file is gone, has changed or lacks the function; StorageError."""
        self.name, self._wanted = file_name(code), wanted
        try:
            self._text, self.sha256 = read(code)
            if code.sha256 not in (None, self.sha256):
                raise UnusableCode(
                    f"{code.uri} has changed since the run was submitted: sha256 {self.sha256}, "
                    f"at submission it was {code.sha256}. Restore the file and retry, or submit again"
                )
            check(self._text, self.name, wanted)
        except ObjectMissing as error:
            raise UserCodeError(f"there is no user code at {code.uri}: {error}") from error
        except UnusableCode as error:
            raise UserCodeError(str(error)) from error
        # Not a path: it may be elsewhere, and have changed, by the time somebody looks there.
        self._file = f"<{self.name} {self.sha256[:12]}>"
        self._function: Callable[..., Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_function": None}

    def __call__(self, *arguments: Any) -> Any:
        """Raises UserCodeError."""
        if self._function is None:
            self._function = self.watched(self._execute)
        return self.watched(self._function, *arguments)

    def watched(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What the call returns; what it raises comes as UserCodeError, but for memory that has run out."""
        try:
            return call(*arguments)
        except UserCodeError:
            raise
        except Exception as error:
            if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "out of memory" in str(error)):
                raise
            told = self._told(error)
        except BaseException as error:
            if not self._is_own(error):  # a request to stop, which came in the middle
                raise
            told = self._told(error)
        raise UserCodeError(told)

    def wrong(self, words: str) -> UserCodeError:
        """The error of a function that has returned what it should not."""
        return UserCodeError(f"{self.name}, in {self._wanted.name}: {words}")

    def _execute(self) -> Callable[..., Any]:
        text = self._text.decode(errors="replace")
        linecache.cache[self._file] = (len(text), None, text.splitlines(keepends=True), self._file)
        module = ModuleType(f"mcf_user_code_{self.sha256[:12]}")
        sys.modules[module.__name__] = module  # dataclasses and pickles look for it there
        exec(compile(self._text, self._file, "exec", dont_inherit=True), vars(module))
        function = vars(module).get(self._wanted.name)
        if not callable(function):
            raise UserCodeError(f"{self.name} defines no function {self._wanted.name}; expected is {self._wanted}")
        return function

    def _frames(self, error: BaseException) -> list[tuple[str, int, str]]:
        return [
            (frame.f_code.co_filename, line, frame.f_code.co_name)
            for frame, line in traceback.walk_tb(error.__traceback__)
        ]

    def _is_own(self, error: BaseException) -> bool:
        return bool(frames := self._frames(error)) and frames[-1][0] == self._file

    def _told(self, error: BaseException) -> str:
        """`mask.py, line 12, in mask: ZeroDivisionError: division by zero`: the innermost line of the file."""
        place = self.name
        if own := [frame for frame in self._frames(error) if frame[0] == self._file]:
            _, line, function = own[-1]
            place += f", line {line}" + ("" if function == "<module>" else f", in {function}")
        said = next(iter(str(error).strip().splitlines()), "")
        return f"{place}: {type(error).__name__}{': ' if said else ''}{said}"[:MAX_WORDS]
