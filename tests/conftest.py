import os
os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('GRADIO_ANALYTICS_ENABLED', 'False')

import pytest
from pathlib import Path
from gen2res.prior import Prior, load_prior
from gen2res.schedule import Schedule
from gen2res.unet import UNet

DATA = Path(__file__).parent/'data'

@pytest.fixture(scope='session')
def faces64(): return load_prior('faces64', device='cpu')

@pytest.fixture(scope='session')
def codeformer(tmp_path_factory):
    "The file of a small untrained CodeFormer, half as wide as published (spandrel has the width written in), which is what makes it slow."
    import sys, torch
    CodeFormer = pytest.importorskip('spandrel_extra_arches.architectures.CodeFormer').CodeFormer
    arch = sys.modules[CodeFormer.__module__]; init,fuse = arch.VQAutoEncoder.__init__,arch.Fuse_sft_block
    torch.manual_seed(0); path = tmp_path_factory.mktemp('c')/'cf.pth'
    with pytest.MonkeyPatch.context() as m:
        m.setattr(arch.VQAutoEncoder, '__init__', lambda self, side, width, *a, **kw: init(self, side, width//2, *a, **kw))
        m.setattr(arch, 'Fuse_sft_block', lambda i, o: fuse(i//2, o//2))
        torch.save(CodeFormer(dim_embd=32, n_head=8, n_layers=1, codebook_size=16, connect_list=['32','64']).state_dict(), path)
        yield path

def untrained(side, **kw):
    "A prior of a few hundred thousand weights that answers with something other than zero."
    import torch
    torch.manual_seed(0)
    model = UNet(side, model_channels=32, out_channels=6, num_res_blocks=1, channel_mult=(1,2), attention_pixels=[8], num_head_channels=32, **kw)
    for p in model.parameters():
        if p.abs().max()==0: torch.nn.init.normal_(p, std=.02)
    return Prior(model.eval().requires_grad_(False), Schedule.linear(), side, 'learned', 'tiny')

@pytest.fixture
def tiny(): return untrained(16)

@pytest.fixture
def tiny64(): return untrained(64, patch=4)
