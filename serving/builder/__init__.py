"""`export build`: a checkpoint to a build directory that can be served."""
