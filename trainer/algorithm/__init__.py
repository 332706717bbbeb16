"""Flow-GRPO and its relatives as pure functions: steps, windows, advantages, losses."""
