"""Requests that nobody should send, sent to a real service: no 5xx, no slow answer, nothing of a foreign file told."""
