"""Where bytes are kept: objects below a path or an s3:// address, and the layout of a run's directory in them."""
