"Training: resumable at any moment, honest about failure."
import json
import pytest, torch
from gen2res.images import ImageError, astronaut, save_image
from gen2res.prior import load_prior
from gen2res.schedule import Schedule
from gen2res.train import Trainer, diffusion_loss, load_pictures, loss_weights, small_arch

ARCH = dict(image_size=16, model_channels=32, out_channels=3, num_res_blocks=1, channel_mult=[1], attention_pixels=[], patch=2)

@pytest.fixture
def pictures(): return ((torch.cat([astronaut(16).roll(i, -1) for i in range(12)])+1)*127.5).byte()

@pytest.mark.parametrize('out_channels', [3, 6])
def test_killed_and_resumed_is_the_same_run(pictures, tmp_path, out_channels):
    kw = dict(arch=ARCH | dict(out_channels=out_channels, dropout=.1), batch=4, warmup=3, ema=.9, iters=12, device='cpu')
    whole = Trainer(pictures, tmp_path/'a', **kw).run(progress=False)
    first = Trainer(pictures, tmp_path/'b', **kw)
    for _ in range(7): first.step()
    first.save(); del first
    second = Trainer(pictures, tmp_path/'b', **kw).run(progress=False)
    assert all(torch.equal(a, b) for a,b in zip(whole.model.parameters(), second.model.parameters()))
    assert load_prior(tmp_path/'b'/'prior', 'cpu').variance==('learned' if out_channels==6 else 'fixed_small')

def test_it_saves_by_the_clock(pictures, tmp_path):
    t = Trainer(pictures, tmp_path, ARCH, batch=2, iters=3, save_seconds=0., device='cpu')
    saves = []; real = t.save; t.save = lambda: (saves.append(t.it), real())
    t.run(progress=False)
    assert saves==[1, 2, 3, 3]

def test_log_is_json_lines_with_validation(pictures, tmp_path):
    Trainer(pictures, tmp_path, ARCH, val=pictures[:3], batch=2, iters=4, log_every=2, val_every=4, sample_every=4, device='cpu').run(progress=False)
    rows = [json.loads(l) for l in open(tmp_path/'log.jsonl')]
    assert [r['it'] for r in rows]==[2, 4] and set(rows[1]['val'])=={'20', '60', '120', '250', '450', '700'} and (tmp_path/'samples_000004.png').exists()

def test_learning_rate_shape(pictures, tmp_path):
    t = Trainer(pictures, tmp_path, ARCH, iters=1000, warmup=100, decay=.3, lr=1., device='cpu')
    assert t.lr_at(0)==.01 and t.lr_at(500)==1 and abs(t.lr_at(850)-.5) < 1e-9 and t.lr_at(1000)==0

def test_weights():
    s = Schedule.linear(); x = torch.zeros(2,3,4,4); t = torch.tensor([10, 800]); out = torch.ones_like(x)
    plain,capped = (diffusion_loss(s, out, x, x, t, torch.zeros_like(x), weights=w) for w in (None, loss_weights(s, 5., 0.)))
    assert torch.allclose(plain, torch.ones(2)) and abs(capped[0]-5/s.snr(10)) < 1e-6 and capped[1]==1
    w = loss_weights(s)
    assert abs(w[700]*s.snr(700)**.5-1) < 1e-9 and w[250]==1 and (w[:50] < 1).all()

def test_pictures_from_anything(tmp_path):
    import numpy as np
    for i in range(3): save_image(astronaut(40), tmp_path/f'{i}.png')
    assert load_pictures(tmp_path, 16).shape==(3,3,16,16)
    np.savez(tmp_path/'grey.npz', images=np.zeros((5,16,16), np.uint8)); assert load_pictures(tmp_path/'grey.npz', 16).shape==(5,3,16,16)
    with pytest.raises(ImageError, match='expected'): load_pictures(tmp_path/'grey.npz', 32)

def test_small_arch_sizes():
    from gen2res.unet import UNet
    for side,patch in ((64,2), (128,4), (32,2)): assert UNet(**small_arch(side, patch))(torch.zeros(1,3,side,side), torch.zeros(1)).shape==(1,3,side,side)
