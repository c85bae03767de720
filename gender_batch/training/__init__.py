"""Fine-tune MobileNetV2 on labelled folders, in two phases, and report what came of it. Needs the `train` extra."""
