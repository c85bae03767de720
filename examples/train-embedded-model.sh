#!/usr/bin/env bash
# How the model that comes with the program was made. Anyone with the photos can repeat it; README.md here says how.
#   examples/train-embedded-model.sh FACES WEIGHTS
# FACES: a folder with FairFace's train/<label>/*.jpg and test/<label>/*.jpg (face crops, padding 0.25).
# WEIGHTS: an ImageNet-trained state dict of torchvision's mobilenet_v2.
set -euo pipefail
faces=$1
weights=$2

gender-batch train "$faces" --out runs/embedded --init "$weights" --pictures face \
  --image-size 160 --adapt-epochs 1 --fine-epochs 6 --batch-size 64 --lr-adapt 1e-3 --lr-fine 1e-3 \
  --attribution "FairFace, Kimmo Kärkkäinen and Jungseock Joo, CC BY 4.0" \
  --attribution "ImageNet backbone: Google, MobileNetV2, Apache-2.0"

gender-batch export runs/embedded --out gender_batch/model/default/apparent-gender.onnx
