"""Losses of the trainer; see ``trainer.losses.base`` for what a loss is."""
