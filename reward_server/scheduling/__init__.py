"""From an admitted request to batches and back: admission, queues, cache, results."""
