"""The command line with accelerate's FSDP2 on the CPU, which accelerate itself keeps for GPUs; run by torchrun."""

import sys

import torch
from accelerate import DistributedType, PartialState


def main() -> int:
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    torch.distributed.init_process_group("gloo")
    from shfcas.cli import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
