"""Bulk image classification: train MobileNetV2, export it to ONNX, score trees of profile pictures."""

import os

# ONNX Runtime would keep an id of this device and a queue of events, to be sent home, in the user's folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
