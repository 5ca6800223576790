"""FlexAttention against the dense mask and the model's own attention; its forward pass works on a CPU."""

import pytest
import torch

from puna.model.llama import BRANCH, PRESETS, Attention
from puna.parallel.context import View
from puna.parallel.flex import BlockView, flex_attend


@pytest.mark.filterwarnings("ignore")  # torch's: uncompiled it is slow
@pytest.mark.parametrize(("cp", "rank"), [(1, 0), (2, 1)])
def test_it_attends_to_what_the_dense_mask_lets_through(cp: int, rank: int) -> None:
    documents = (torch.rand(2, 512) < 0.01).cumsum(1)
    documents[:, 200:] += BRANCH * (torch.rand(2, 312) < 0.02).cumsum(1)
    S = 512 // cp
    q, k, v = torch.randn(2, 4, S, 16), torch.randn(2, 2, 512, 16), torch.randn(2, 2, 512, 16)
    with torch.no_grad():
        found = flex_attend(q, k, v, BlockView(cp, rank).mask(documents))
        wanted = Attention(PRESETS["1m"], 0).attend(q, k, v, View(cp, rank).mask(documents))
    torch.testing.assert_close(found, wanted)


def test_blocks_of_other_documents_are_left_out() -> None:
    documents = torch.arange(1024)[None] // 256
    mask = BlockView().mask(documents)
    assert mask.sparsity() > 80  # percent; causal alone would be 44
