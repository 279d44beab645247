"""The little of CUDA that engines call themselves: memory, copies, one stream, captured graphs."""
