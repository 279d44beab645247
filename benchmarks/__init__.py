"""Every figure of the README and of docs/evidence.md, from commands that anyone can run.

    python -m benchmarks                    everything; writes benchmarks/results.json
    python -m benchmarks heldout latency    some of it

Machines differ and are noisy: figures that are compared are taken in one run, in turns, and quoted
as ratios.
"""
