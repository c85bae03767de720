"""The model file (ONNX and its metadata), and the ONNX Runtime session that runs it."""
