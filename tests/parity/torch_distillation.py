"""Distillation once more: PyTorch's own divergence between softened probabilities; autograd differentiates."""

from tests.parity.pytorch import torch
from tinymoe.ops.distillation import distillation as ours

F = torch.nn.functional


def distillation(logits, *, teacher, temperature=1.0, mask=None):
    real = slice(None) if mask is None else torch.from_numpy(mask)
    student, wise = (torch.log_softmax(t[real] / temperature, -1) for t in (logits, torch.as_tensor(teacher)))
    return temperature**2 * F.kl_div(student, wise, reduction="sum", log_target=True) / max(len(student), 1)


REFERENCES = {ours: distillation}
