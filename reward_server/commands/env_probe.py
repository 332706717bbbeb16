"""Says, in a scorer's own interpreter, what a worker could not import there.

`python -m reward_server.commands.env_probe '[["ocr"], ["rapidocr"]]'` prints one JSON object as its
last line: what -> why. Like the worker it imports no protobuf, and nothing that it does not try.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable


def main(argument: str) -> None:
    """Try the scorers and the modules that the argument lists."""
    scorers, modules = json.loads(argument)
    problems = {
        name: problem for name in modules if (problem := _problem(importlib.import_module, name))
    }
    if problem := _problem(importlib.import_module, "reward_server.workers.worker"):
        problems["reward_server.workers.worker"] = problem
    else:
        from reward_server.scorers import load_scorer_class

        tried = {name: _problem(load_scorer_class, name) for name in scorers}
        problems |= {name: problem for name, problem in tried.items() if problem}
    print(json.dumps(problems))


def _problem(load: Callable[[str], object], name: str) -> str:
    try:
        load(name)
    except Exception as error:  # what is there may break in any way when it is imported
        return f"cannot import {name}: {_brief(error)}"
    return ""


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, LookupError) and text else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    main(sys.argv[1])
