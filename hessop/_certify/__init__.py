"""Is this a Hessian, and is this point a minimum?"""
