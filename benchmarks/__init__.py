"""Every figure in the README and docs/evidence.md, from commands that anyone can run.

    python -m benchmarks                    all of it; writes benchmarks/results.json
    python -m benchmarks heldout latency    some of it

Machines differ and are noisy, so figures that are compared are taken in the same run, in turns, and
quoted as ratios.
"""
