"""Turns prompts and instructions into token ids.

`prompts.PromptTokenizer` tokenises a prompt for the language model and finds the places of its
images; `instructions.InstructionTokenizer` tokenises it for the Q-Former; `checks` refuses faulty
requests without a tokenizer. The files in a build's `text/` decide what is done: special tokens
come from each tokenizer's own post-processor, as in transformers.

Built only on the `tokenizers` library, so that a server needs no transformers. Knows nothing of
graphs.
"""
