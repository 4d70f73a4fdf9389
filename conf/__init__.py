"""The Hydra tree: one folder a concern, one file an option. ``config.yaml`` names the defaults."""
