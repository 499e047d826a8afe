"""Where images come from: a folder, an LMDB, or tar shards, each with an index of what it holds. No torch."""
