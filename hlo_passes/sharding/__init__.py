"""Tensor parallelism: plan, propagate and partition, all over one table of factor rules."""
