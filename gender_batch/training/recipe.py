"""All that decides the result of a training run besides the data, and the machine it runs on."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import torch

from gender_batch.model.processor import instructions
from gender_batch.pictures.preprocessing import Preprocessing
from gender_batch.training.augmentation import Augmentation


@dataclass(frozen=True)
class Recipe:
    """All that decides the result of a training run, besides the data.

    benchmarks/ablation.py measures what each ingredient is worth; those of no use there are off.
    """

    image_size: int
    """Side of the square that the network sees, in pixels."""
    train_size: int | None = None
    """Side of the training pictures; None: nine tenths of `image_size`. Random crops enlarge faces, so that at this
    size they are on average as large as when judged (Touvron et al. 2019, section 3), and training is quicker."""
    adapt_epochs: int = 3
    fine_epochs: int = 12
    batch_size: int = 32
    lr_adapt: float = 3e-3
    lr_fine: float = 3e-4
    statistics_from: int = 0
    """Pictures to train on from which the fine-tuning learns batch-norm statistics of its own; with fewer, those that
    the features came with are kept, which suits features that know such pictures, and no others."""
    layer_decay: float = 1.0
    """Rate of each block of the features, as a share of the next one's (Howard and Ruder 2018); 1: all learn alike."""
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    mixup: float = 0.0
    """Both parameters of the beta distribution of the mixing share (Zhang et al. 2018); 0: off."""
    cutmix: float = 0.0
    """The same for patches instead of blends (Yun et al. 2019)."""
    average: bool = True
    """Judge and keep an exponential moving average of the weights, not the last ones."""
    class_weights: bool = False
    """Weigh the losses, in training and in validation, by the inverse frequency of the classes in training. What is
    fitted after it, temperature and threshold, is for the frequencies of the validation set."""
    tilt: float = 3.0
    """Where pictures have groups: how much more a group of larger loss counts within its class, as
    exp(tilt * loss in nats), after the tilted loss of Li et al. 2021, section 2; 0: all count alike."""
    auxiliary: float = 0.3
    """Weight of what is learnt beside the classes, where something is: the mean loss of the other columns counts this
    much (Caruana 1997)."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    patience: int = 6
    """Epochs without a better validation loss after which the adaptation ends. The fine-tuning goes to its end: at a
    high rate a good start gets worse before, at a falling one, it gets better."""
    seed: int = 0

    @property
    def preprocessing(self) -> Preprocessing:
        """The whole of the shorter side. Cutting a sixteenth of it off, as is usual of objects in photos, took hair and
        chin from faces: 91.5 in place of 92.5% of 2,399 validation pictures were right."""
        return Preprocessing(size=self.image_size, resize=self.image_size)

    @property
    def size_in_training(self) -> int:
        return self.train_size or 8 * round(0.9 * self.image_size / 8)

    @property
    def source(self) -> Preprocessing:
        """What augmentation draws from: the whole square, large enough that most crops are made of real pixels."""
        side = round(self.size_in_training * 5 / 4)
        return Preprocessing(size=side, resize=side)


BF16 = {"avx512_bf16", "amx_bf16"}
"""Instructions for bf16."""


@dataclass(frozen=True)
class Machine:
    """Where it runs: a torch device, and the number of processes that decode what does not fit into the cache."""

    device: torch.device
    workers: int

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Where steps are computed in `precision`."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    @property
    def precision(self) -> torch.dtype:
        """bf16 where the device has it; else fp16 on a GPU, and float32 on a CPU, which would compute bf16 in float32
        and round every number after it: on two cores with AVX2 alone that took eleven times as long."""
        if self.device.type == "cpu":
            return torch.bfloat16 if BF16 & instructions() else torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
