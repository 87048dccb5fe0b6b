"""A function's Hessian as a program: traced, identified, at a point, as terms."""
