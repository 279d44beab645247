"""Adapters of peft, merged into a checkpoint's tensors. No weight is read here.

`reading.adapter_from_word` opens one, from a directory or the hub: its `config` (what peft's
`adapter_config.json` says, or a refusal by name of what is not LoRA) and the place of its tensors.
`adapted.adapt` gives each tensor to the weight that it changes: a `Weight` of
`export.weights.merging` takes that weight's place, and everything behind it (recipes, quantisation,
digests, links) sees a checkpoint like any other. `base` says which checkpoint an adapter is for.

This room does not know which graphs a checkpoint becomes, nor peft: `export.verification` runs
that, unmerged, as the reference.
"""
