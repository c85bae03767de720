"""From a checkpoint to a self-describing ONNX file, proved to give the same answers. Needs the `train` extra."""
