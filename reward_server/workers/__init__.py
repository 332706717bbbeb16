"""Scorers in processes of their own: the pool, its replicas, and what runs inside them."""
