"""The algebra of terms: data, moves, merging and assembly. Knows no primitive and no jaxpr."""
