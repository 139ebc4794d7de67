"""Conditional densities and dynamics models that learners build on, and one `imagine`."""
