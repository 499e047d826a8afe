"""However many cells go through the networks together, the step is the same."""
