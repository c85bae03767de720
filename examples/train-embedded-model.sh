#!/usr/bin/env bash
# How the model that comes with the program was made. Anyone with the photos can repeat it; README.md here says how.
#   examples/train-embedded-model.sh FACES LABELS WEIGHTS
# FACES: a folder with FairFace's train/<label>/*.jpg and test/<label>/*.jpg (face crops, padding 0.25).
# LABELS: a CSV with the columns path, age and race of those pictures, for figures per group.
# WEIGHTS: an ImageNet-trained state dict of torchvision's mobilenet_v2.
set -euo pipefail
faces=$(realpath "$1")
labels=$2
weights=$3

# The same pictures through links, without six of train/ that are near-duplicates of pictures in test/:
# `gender-batch train` finds them, and refuses to train on both.
rm -rf runs/embedded-data
mkdir -p runs/embedded-data
cp -rs "$faces/train" "$faces/test" runs/embedded-data
(cd runs/embedded-data/train && rm -f female/{1674,6629,7873,17965,27296}.jpg male/9888.jpg)

train() {
  gender-batch train runs/embedded-data --labels "$labels" --pictures face --adapt-epochs 1 --lr-adapt 1e-3 --lr-fine 1e-3 \
    --balance race --target-precision 0.975 \
    --attribution "FairFace, Kimmo Kärkkäinen and Jungseock Joo, CC BY 4.0" \
    --attribution "ImageNet backbone: Google, MobileNetV2, Apache-2.0" "$@"
}

# Six times, each time from the features of the time before, since one such schedule leaves them short of what they
# can learn; all hold out the same pictures. About an hour each on two CPU cores. (The recipe changed meanwhile: the first
# two smoothed labels by 0.05; the first four zoomed out of 30% of the pictures and faded their edges over a third; the
# first five chose among their epochs by pictures whose centre was cut out, and began with a new head; none considered
# the mean with its start, which is now what `train` takes unless that is worse by more than chance.)
train --out runs/embedded-first --init "$weights" --image-size 160 --fine-epochs 16
train --out runs/embedded-second --init runs/embedded-first/checkpoint.safetensors --image-size 160 --fine-epochs 14 \
  --auxiliary age --auxiliary race
train --out runs/embedded-third --init runs/embedded-second/checkpoint.safetensors --image-size 160 --fine-epochs 20 \
  --auxiliary age --auxiliary race
train --out runs/embedded-fourth --init runs/embedded-third/checkpoint.safetensors --image-size 184 --fine-epochs 16 \
  --auxiliary age --auxiliary race
train --out runs/embedded-fifth --init runs/embedded-fourth/checkpoint.safetensors --image-size 184 --fine-epochs 12 \
  --lr-fine 6e-4 --auxiliary age --auxiliary race
train --out runs/embedded-sixth --init runs/embedded-fifth/checkpoint.safetensors --image-size 208 --fine-epochs 5 \
  --lr-fine 3e-4 --auxiliary age --auxiliary race

# The fifth knows faces that fill the picture better, the sixth small ones. The mean of their weights (Wortsman et al.
# 2022) is nearly as good at either. (The fifth's weights were taken as they ship: of half the digits.)
python - runs/embedded-fifth/checkpoint.safetensors runs/embedded-sixth/checkpoint.safetensors runs/embedded-mean.safetensors <<'PYTHON'
import json
import sys
from safetensors import safe_open
from safetensors.torch import load_file, save_file

*both, out = sys.argv[1:]
with safe_open(both[1], "pt") as file:
    description = json.loads(file.metadata()["gender_batch"])
description["training"]["mean_of_both"] = True
before, after = map(load_file, both)
save_file({name: ((before[name].double() + tensor.double()) / 2).to(tensor.dtype) for name, tensor in after.items()},
          out, {"gender_batch": json.dumps(description)})
PYTHON

# At 200 pixels, between the two: an epoch of the head alone, then temperature, threshold and figures.
train --out runs/embedded --init runs/embedded-mean.safetensors --image-size 200 --lr-adapt 1e-4 --fine-epochs 0

# Features for others to start from: what `gender-batch train` takes without --init. Half the digits are enough.
python - runs/embedded/checkpoint.safetensors gender_batch/model/default/apparent-gender.safetensors <<'PYTHON'
import sys
from safetensors import safe_open
from safetensors.torch import load_file, save_file

with safe_open(sys.argv[1], "pt") as file:
    metadata = file.metadata()
state = load_file(sys.argv[1])
save_file({name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()},
          sys.argv[2], metadata)
PYTHON

gender-batch export runs/embedded --out gender_batch/model/default/apparent-gender.onnx \
  --precision fp32 --precision fp16 --precision int8
(cd gender_batch/model/default && sha256sum ./*.onnx ./*.safetensors | sed 's|\./||' > SHA256SUMS)
