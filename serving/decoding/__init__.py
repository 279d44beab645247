"""Encoded images to pixels on the server, in processes that an image may keep busy or end.

`settings.py` has the limits; `worker.py` is the process that decodes, with the client's own code
(`export.images`), and holds nothing but the image; `process.py` starts it, and ends it where it
takes too long; `pool.py` has several, and remembers the pixels of images that come again. Knows
neither Triton nor any engine.
"""
