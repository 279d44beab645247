"""Checkpoints in the form of LAVIS and MiniGPT-4: several files, with names of their own.

`reading.checkpoint_from_original` opens the files that `--part` names (`parts`) and joins them to a
`Checkpoint` (`assembled`), as a directory in Hugging Face form would give it. `names` translates
the originals' tensor names and transformers' in both directions, `joining` merges the files'
tensors, `lora` LoRA that is among them, and `tokenizers`, `tokenisation`, `starting`, `vocabulary`
and `configs` reproduce the originals' settings.

This room reads no weights, and the rest of `export` does not know that a checkpoint came from here.
"""
