"""Processes that come and go: agents, workers, how they meet, and how they notice that one has gone."""
