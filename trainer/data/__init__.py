"""From a folder, an LMDB or shards of images to the batches of a step."""
