"""Runs graphs on OpenVINO, whose matmuls are often faster on a CPU.

`runner.OpenVinoRunner` runs vision encoder and Q-Former (decision 0053). `graph.OpenVinoGraph` is
also a `Graph` of `engines.language_model.onnx.graph`: attention over slots stays with ONNX Runtime
(`attention`), whose operator writes keys and values in place (decision 0052).

Knows nothing of requests or text.
"""

import sys

# Without this package of its own, OpenVINO does not report to Google that it was imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
