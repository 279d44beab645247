"""Language-model engines: a visual prompt and a prompt in, a stream of text out."""
