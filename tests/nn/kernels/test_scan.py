import pytest
import torch
from torch.testing import assert_close

from lit_seq2seq.nn.kernels.scan import in_rounds, linear_scan


@pytest.mark.parametrize("steps", [1, 2, 7, 8])
def test_rounds_over_all_steps_equal_the_loop(steps: int) -> None:
    a, b = torch.rand(3, steps, 4, dtype=torch.double), torch.randn(3, steps, 4, dtype=torch.double)
    first = torch.randn(3, 4, dtype=torch.double)
    assert_close(in_rounds(a, b, first), linear_scan(a, b, first))
    inputs = [tensor.requires_grad_() for tensor in (a, b, first)]
    assert torch.autograd.gradcheck(linear_scan, inputs)
