"""Coordination: who makes a region, keeps the register of its devices, and starts and restarts processes for it."""
