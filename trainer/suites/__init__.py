"""Benchmark suites: manifests, pictures, scores, statistics, pages and comparisons."""
