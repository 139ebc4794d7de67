"""Conditional densities and, later, dynamics models that learners build on."""
