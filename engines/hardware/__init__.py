"""What this machine and NVIDIA's containers have, and what loads there."""
