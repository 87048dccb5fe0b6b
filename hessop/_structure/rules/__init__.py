"""Rules of the structure engine: what each linear primitive does to terms."""
