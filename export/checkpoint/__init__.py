"""A checkpoint on disk, in whatever form, without reading a weight.

`checkpoint.checkpoint_from_directory` opens a directory in Hugging Face form: its config, its
processor, and the place of every tensor, from the header of a safetensors file (`safetensors`) or
the pickle of a `.bin` or `.pth` (`torch_files`), in which nothing but tensors is unpickled.
`source` says which checkpoint was asked for, and `hub` downloads one. `facts` derives what a
manifest records of it, `cache_shape` the size of its key-value cache. `image_size` adapts it to
images of another size: a recipe for the position embeddings, a config, and an image processor.

This room does not know which graphs a checkpoint becomes.
"""
