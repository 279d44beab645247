"""The part of CUDA that engines call themselves: memory, copies, streams, captured graphs.

`device.Device` is the protocol that engines use, and `device.CudaDevice` implements it on NVIDIA's
`cuda-bindings` (decision 0017); tests implement it in the host's memory. `errors` turns CUDA's
status codes into errors that say what to do.

Knows nothing of TensorRT, plans or tensors. Importing it does not load CUDA.
"""
