"""GenEval metadata rows: `{"tag", "include": [{"class", "count", "color", "position"}], "prompt"}`.

The format is that of the benchmark (github.com/djghosh13/geneval) and of flow_grpo's data set.
"""

from collections.abc import Callable
from pathlib import Path

from reward_client.geneval_spec import SpecError, parse, to_row
from trainer.data.files import rows, text_field, unique
from trainer.errors import DataError
from trainer.types import Prompt


def load(path: Path, say: Callable[[str], None] = print) -> list[Prompt]:
    """Read a file of GenEval rows; the category is the tag.

    Which classes, colours and tags there are is for the scorer to say (`trainer.run.trial`).

    Raises:
        DataError: a malformed row, naming file and line.
    """
    prompts = []
    for place, row in rows(path):
        text = text_field(place, row, "prompt")
        try:
            task = parse(row, None, None, None)
        except SpecError as error:
            raise DataError(f"{place}: {str(error).removeprefix('spec.')}") from None
        spec = to_row(task)
        prompts.append((place, Prompt(text=text, spec=spec, spec_kind="geneval", group=task.tag)))
    return unique(path, prompts)
