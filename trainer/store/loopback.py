"""The names of this machine. No imports: every command of `mcf` starts with it."""

LOOPBACK = ("127.0.0.1", "::1", "localhost")
