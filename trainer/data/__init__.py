"""Prompts of a run: files by task."""

from trainer.data.files import category_probabilities, check_overlap, fingerprint, without
from trainer.data.tasks import TASKS

__all__ = ["TASKS", "category_probabilities", "check_overlap", "fingerprint", "without"]
