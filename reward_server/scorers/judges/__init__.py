"""VLM judges: questions about a picture, put to an OpenAI-compatible endpoint, strictly read.

`definitions.JUDGES` holds every judge: what it asks, how its answer is read, what the scale is.
"""
