"""Reward models on Qwen2-VL and Qwen2.5-VL whose score a head reads at a token of its own."""
