"""`HessianOperator`, its adapters to lineax and scipy, and the drop-in `hessian`."""
