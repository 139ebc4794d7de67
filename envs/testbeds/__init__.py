"""Test beds: finite worlds whose transition matrices, and hence whose empowerment, are known."""
