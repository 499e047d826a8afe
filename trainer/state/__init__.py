"""The state of training: checkpoints in the store, copies in memory, and when each is made."""
