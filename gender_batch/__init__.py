"""Bulk image classification: train MobileNetV2, export it to ONNX, score trees of profile pictures."""

__version__ = "0.1.0"
