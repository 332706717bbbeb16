"""The miniatures: pipelines of diffusers that are small enough to train with GRPO on a laptop.

A Stable Diffusion 3: `scenes` says what can be drawn, `render` draws it, `prompts` speaks GenEval's
grammar about it, `text`, `vae`, `denoiser` and `pretrain` build and pretrain the pipeline in
`miniature/weights`. A FLUX.1-Kontext that edits such drawings: `edits` and `editor` do the same for
`miniature/weights_edit`. `python -m miniature build` and `editor` run all of it.
"""
