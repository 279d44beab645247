"""What is traced: one module a component, each with its contract."""
