"""Is this a Hessian; is this a minimum."""
