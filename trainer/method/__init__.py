"""The method (docs/method.md): networks, losses, optimizer, the grid of a step and every random draw."""
