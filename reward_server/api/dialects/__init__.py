"""The dialects of clients that exist already; off unless `[server] legacy` is set.

Every file here translates one dialect to `RewardService.score` and back. Nothing else of the server
knows them.
"""
