"""`HessianOperator`, and what is built on it for lineax, scipy and drop-in use."""
