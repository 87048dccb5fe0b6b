"""The algebra of terms: data, moves, merging and assembly. Knows no primitives and no jaxprs."""
