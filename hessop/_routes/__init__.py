"""Ways to entries and products of a Hessian, and which one is taken."""
