"""The miniature: a Stable Diffusion 3 pipeline small enough to train with GRPO on a laptop.

`scenes` says what can be drawn, `render` draws it, `prompts` speaks GenEval's grammar about it,
`text`, `vae` and `pretrain` build and pretrain the pipeline. `python -m miniature build` runs
all of it; the result is shipped in `miniature/weights`.
"""
