"""`reward-server top`: how a running server does, live."""
