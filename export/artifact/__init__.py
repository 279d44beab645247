"""What a build is on disk. Loads nothing heavy: the server and the client read it."""
