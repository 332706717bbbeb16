"""Commands beside training: plan, evaluate, sample, export."""
