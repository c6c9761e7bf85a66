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
    "The file of a small untrained CodeFormer."
    import torch
    CodeFormer = pytest.importorskip('spandrel_extra_arches.architectures.CodeFormer').CodeFormer
    torch.manual_seed(0); path = tmp_path_factory.mktemp('c')/'cf.pth'
    torch.save(CodeFormer(dim_embd=32, n_head=8, n_layers=1, codebook_size=16).state_dict(), path)
    return path

@pytest.fixture
def tiny():
    "An untrained prior of a few thousand weights, 16 px, that answers with something other than zero."
    import torch
    torch.manual_seed(0)
    model = UNet(16, model_channels=32, out_channels=6, num_res_blocks=1, channel_mult=(1,2), attention_pixels=[8], num_head_channels=32)
    for p in model.parameters():
        if p.abs().max()==0: torch.nn.init.normal_(p, std=.02)
    return Prior(model.eval().requires_grad_(False), Schedule.linear(), 16, 'learned', 'tiny')
