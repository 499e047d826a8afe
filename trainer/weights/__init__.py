"""Files of weights: where a name leads, which formats are read, and what is exported."""
