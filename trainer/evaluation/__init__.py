"""What is measured on a trained encoder: probe and sanity metrics of every run, and the stages that a run asks for."""
