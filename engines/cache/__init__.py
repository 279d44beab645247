"""Plans by what they are made of, so that the same plan is built once and shared by every build."""
