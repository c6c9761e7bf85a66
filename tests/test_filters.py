"phi_N, to the last digit."
import numpy as np, pytest, torch
from gen2res.filters import FILTERS, blur, box, lowpass, mirror, nearest_factor, shrink
from conftest import DATA

@pytest.mark.parametrize('kind', ['noise', 'smooth'])
@pytest.mark.parametrize('N', [4, 8, 16])
def test_as_published(kind, N):
    ref = {k: torch.from_numpy(v) for k,v in np.load(DATA/'lowpass.npz').items() if v.dtype.kind=='f'}
    assert (shrink(ref[f'img_{kind}'], N)-ref[f'{kind}|down_N{N}']).abs().max() < 1e-6
    assert (lowpass(ref[f'img_{kind}'], N)-ref[f'{kind}|lowpass_N{N}']).abs().max() < 1e-6

def test_mirror_repeats_the_edge():
    assert mirror(torch.arange(3.).view(1,1,1,3).expand(1,1,3,3), 4)[0,0,4].tolist()==[2,2,1,0,0,1,2,2,1,0,0]
    assert np.array_equal(mirror(torch.arange(12.).view(1,1,3,4), 3)[0,0].numpy(), np.pad(np.arange(12.).reshape(3,4), 3, mode='symmetric'))

@pytest.mark.parametrize('name', list(FILTERS))
def test_differentiable_and_of_the_same_shape(name):
    x = torch.randn(2,3,32,48, requires_grad=True); y = FILTERS[name](x, 8); y.sum().backward()
    assert y.shape==x.shape and x.grad.isfinite().all()

@pytest.mark.parametrize('sigma', [6., 12.])
def test_wide_blurs_are_the_same_in_two_passes(sigma, monkeypatch):
    x = torch.randn(1, 3, 40, 56); quick = blur(x, sigma)
    monkeypatch.setattr('gen2res.filters.WIDE', 1000); assert (quick-blur(x, sigma)).abs().max() < 1e-5 and torch.equal(blur(x, 0), x)

def test_N_must_divide():
    with pytest.raises(ValueError, match='must divide'): lowpass(torch.zeros(1,3,30,32), 4)
    x = torch.randn(1,3,7,5); assert torch.equal(lowpass(x, 1), x)

@pytest.mark.parametrize('N,side,near', [(2., 64, 2), (4., 64, 4), (16., 512, 16), (5.5, 88, 4), (.5, 64, 2), (12.5, 200, 10)])
def test_the_nearest_factor(N, side, near): assert nearest_factor(N, side)==near and side%near==0

def test_box_is_a_projection():
    x = torch.randn(1,3,16,16); assert torch.allclose(box(box(x, 4), 4), box(x, 4), atol=1e-6)
