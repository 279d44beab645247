"""The vision cache: what images were encoded to, so that an image is encoded once.

`cache.VisionCache` is what a pipeline or a server asks: `memory.RecentArrays` first, and then, if a
user has named one, `directory.CacheDirectory`, which outlives the process and which processes share
(decision 0055). Knows nothing of engines or of Triton.
"""
