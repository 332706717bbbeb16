"""Run the settings in a JSON file with the fake service: what the tests start and kill."""

import json
import sys
from pathlib import Path

from tests.trainer_run.fake_service import service_with
from trainer.config import parse
from trainer.start import train_run

if __name__ == "__main__":
    settings = parse(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    train_run(settings, open_service=service_with())
