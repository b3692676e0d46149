"""Every CUDA kernel once or twice at small shapes, for tools that make a GPU slow. Run as a script."""

import torch
from rows import make_jagged, make_rows

import shfcas

ops = torch.ops.shfcas


def run_rows(x, y, offsets=None):
    shfcas.kendall_counts(x, y, offsets=offsets)
    shfcas.kendall_tau(x, y, variant="c", offsets=offsets)
    if x.dtype.is_floating_point:
        shfcas.conflict_scores(x, y, offsets=offsets)
        shfcas.pacs(x, y, offsets=offsets)
        ops.pacs_backward(x, x, y, offsets)


def main() -> None:
    for dtype in (torch.float64, torch.float32, torch.int64, torch.int32):
        for n in (0, 1, 7, 8, 16, 33, 65, 200, 1025, 3000):
            for distinct in (None, 3):
                run_rows(make_rows((70, n), dtype, 0, distinct).cuda(), make_rows((70, n), dtype, 1, distinct).cuda())
        x, y, offsets = make_jagged([3, 0, 17, 16, 200, 1500, 5] * 10, dtype, 2)
        run_rows(x.cuda(), y.cuda(), offsets.cuda())
        for shape in ((70, 65), (2, 8200)):
            ops.kendall_tau_matrix(make_rows(shape, dtype, 3, 9).cuda(), "c")
            ops.kendall_distance_matrix(make_rows(shape, dtype, 4).cuda())
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        logits = make_rows((2, 3, 1001), dtype, 5).cuda()
        labels = torch.zeros(2, 3, dtype=torch.int64).cuda()
        for entropy in (False, True):
            _, logprobs, spread, normalizer = ops.token_statistics(logits, labels, labels == 0, 1.0, entropy)
            of_entropy, saved = (logprobs, spread) if entropy else (None, None)
            ops.token_statistics_backward(logprobs, of_entropy, logits, labels, None, saved, normalizer)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
