"""How a network is pruned while it is trained: what the loop asks of a method, and one module per method (torch)."""
