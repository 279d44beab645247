"""The engine cache: plans that builds share, so that an equal plan is built once (decision 0016).

`cached_plan.cached_plan` takes a plan from the cache or builds and keeps it. `key.PlanInputs` is
everything that decides a plan, and its digest is the key. `store.EngineCache` is the directory with
its locks, `entry.Entry` one plan with its record. `catalogue` and `pruning` list and remove entries
for `iblip engines`, together with what ONNX Runtime's providers keep beside the cache.

Knows nothing of what a graph computes, or of how a plan is run.
"""
