"""Spectra of Hessians: eigenpairs that are known to be complete, stationary points, densities, functions of a matrix."""
