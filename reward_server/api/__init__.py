"""The transports: thin layers over `service.RewardService`."""
