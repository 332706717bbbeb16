"""HPSv3 (Ma et al. 2025, arXiv:2508.03789): a preference score by Qwen2-VL-7B with a rank head."""
