"""A Triton server: found, started, watched, stopped."""
