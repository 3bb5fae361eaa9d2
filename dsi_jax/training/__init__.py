"""Losses, schedules, optimizers, state, sharding and checkpoints."""
