"""Étude: unsupervised skill discovery for reinforcement learning."""
