"""Experiments as files: each module has a `get_config()` that starts from `configs.base`."""
