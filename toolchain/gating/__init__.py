"""Which neurons a network needs: gates, the sets of neurons that live together, selection, cutting (torch)."""
