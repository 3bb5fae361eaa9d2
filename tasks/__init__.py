"""seqio registrations, one module a corpus; installed as `dsi_jax.tasks`."""
