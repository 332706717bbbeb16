"""The reward server: scorers in worker processes behind gRPC and HTTP."""
