"""The stage `train`: recipe, schedule, pressure, the loop, checkpoints (torch)."""
