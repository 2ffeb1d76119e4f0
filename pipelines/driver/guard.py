"""Whether a user's script may be imported again, as processes that load images do."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path

from pipelines.base.errors import SetupError


def check_guard() -> None:
    """A script that starts loader processes must guard what it does: each of them imports the script again.

    Raises:
        SetupError: the statement that led here is not below `if __name__ == "__main__":`.
    """
    main = sys.modules["__main__"]
    path = Path(getattr(main, "__file__", None) or "")
    frame = inspect.currentframe()
    while frame and not (frame.f_code.co_name == "<module>" and frame.f_globals is vars(main)):
        frame = frame.f_back
    if frame is None or not path.is_file():  # another thread, or nothing that could be imported again
        return
    line = frame.f_lineno
    for statement in ast.parse(path.read_bytes()).body:
        if statement.lineno <= line <= (statement.end_lineno or line) and not is_guard(statement):
            raise SetupError(
                f"{path}, line {line}: each loader process (feed=torch, workers.feed_tasks) imports this script again, "
                'and would start the training again. Put what the script does below `if __name__ == "__main__":`, or '
                "set workers.feed_tasks=null."
            )


def is_guard(statement: ast.stmt) -> bool:
    """Whether a statement is an `if` that asks for `__name__`."""
    names = ast.walk(statement.test) if isinstance(statement, ast.If) else []
    return any(isinstance(name, ast.Name) and name.id == "__name__" for name in names)
