"The closed-form album and the shared attention: exact cases, batches, costs."
import pytest, torch
from gen2res.images import seeded
from gen2res.restore import restore
from gen2res.sample import Step
from gen2res.unet import Attention
from gen2res.untuned import AlbumMean, Shared, SharedPrior, album_mean, shifted

def photos(n=2, side=16): return seeded(40, n).randn_like(torch.zeros(n,3,side,side)).clamp(-1,1)

def by_patches(x, abar, pictures, side, c):
    "The posterior mean of every pixel, patch by patch."
    out,h = torch.zeros_like(x),side//2
    for b in range(len(x)):
        for i in range(x.shape[-2]):
            for j in range(x.shape[-1]):
                at = (..., slice(max(i-h, 0), i+h+1), slice(max(j-h, 0), j+h+1))
                d = (x[b][at]-abar**.5*pictures[at]).pow(2).sum((1,2,3))
                out[b,:,i,j] = (-d/2/(1-abar+abar*c**2)).softmax(0)@pictures[...,i,j]
    return out

@pytest.mark.parametrize('side,c', [(3, 0.), (5, .3)])
def test_posterior_mean_by_hand(side, c):
    x,a = photos(2, 8),photos(5, 8)[2:]
    assert torch.allclose(album_mean(x, .3, a, side, c), by_patches(x, .3, a, side, c), atol=1e-4)

def test_an_album_of_one_knows_one_answer():
    x,a = photos(3),photos(1).flip(-1)
    assert torch.equal(album_mean(x, .5, a), a.expand_as(x))

def test_patches_may_come_from_different_pictures():
    a = photos(2); both = torch.cat([a[:1,...,:8], a[1:,...,8:]], -1)
    assert torch.allclose(album_mean(both, .9999, a, 3)[...,[1,2,3,12,13,14]], both[...,[1,2,3,12,13,14]], atol=1e-4)

def test_shifts():
    a = photos(2); s = shifted(a, 1)
    assert len(s)==18 and torch.equal(shifted(a, 0), a) and sum(torch.equal(x, a[0]) for x in s)==1
    assert torch.equal(s[0][...,1:,1:], a[0][...,:-1,:-1])
    moved = a.roll(1, -1)                                                   # a photo that lies a pixel off is found
    assert (album_mean(moved, .9999, s, 5)-moved)[...,3:-3,3:-3].abs().max() < 1e-4

@pytest.mark.parametrize('scale', [0., .7])
def test_scale(tiny, scale):
    y,made = photos(),lambda *c: restore(photos(), tiny, K=20, constraints=c)
    assert torch.equal(made(), made(AlbumMean(y.flip(-1), scale)))==(scale==0)

def test_detail_is_mixed_at_its_strength(tiny):
    y = photos(); st = Step(tiny, y, 300, 299, None, x0=y.flip(-1).clone()); was = st.x0.clone()
    c = AlbumMean(photos(3), 1.); c.on_x0(st)
    d,changed = c.detail(was),c.detail(was)+st.x0-was
    strength = lambda x: x.pow(2).mean((1,2,3))
    assert (st.x0-was).abs().max() > .05 and torch.allclose(strength(d), strength(changed), rtol=1e-4)
    a = tiny.schedule.a(300); m = album_mean(c.detail(y), a, c.pictures, c.side, c.c)
    mixed = d + (1-a)/(1-a+a*c.c**2)*(m-d)
    assert torch.allclose(torch.cosine_similarity(mixed.flatten(1), changed.flatten(1)), torch.ones(2), atol=1e-5)

def test_each_photo_alone(tiny):
    y,album = photos(3),photos(2).flip(-1)
    for make in (lambda p: (p, [AlbumMean(album, 1.)]), lambda p: (SharedPrior(p, album), [])):
        p,c = make(tiny)
        both = restore(y, p, K=15, constraints=c, seeds=[1,2,3])
        assert (restore(y[1:2], p, K=15, constraints=c, seeds=[2])-both[1:2]).abs().max() < 2e-5

def test_shared_attention(tiny):
    y,album = photos(),photos(3).flip(-1); plain = restore(y, tiny, K=10)
    assert torch.allclose(restore(y, SharedPrior(tiny, album, 0.), K=10), plain, atol=1e-5)
    assert not torch.allclose(restore(y, SharedPrior(tiny, album, 1.), K=10), plain, atol=1e-4)
    assert torch.equal(restore(y, tiny, K=10), plain) and all(type(m) is not Shared for m in tiny.model.modules())

def test_what_is_shared_is_part_of_the_fingerprint(tiny):
    album = photos(3); prints = [p.fingerprint() for p in (tiny, SharedPrior(tiny, album), SharedPrior(tiny, album.flip(-1)), SharedPrior(tiny, album, .5), SharedPrior(tiny, album, seed=1))]
    assert len({*prints})==5 and SharedPrior(tiny, album).fingerprint()==prints[1]
    there = SharedPrior(tiny, album).to('meta'); assert there.album.device.type==there.noise.device.type=='meta'

def test_attention_of_another_kind_is_refused(tiny):
    tiny.model = torch.nn.Conv2d(3, 6, 1)
    with pytest.raises(ValueError, match='tiny: has no attention'): SharedPrior(tiny, torch.zeros(1,3,16,16))

def test_a_copy_in_the_album_changes_nothing(tiny):
    "Softmax over the same places twice is the softmax over them once."
    m = next(m for m in tiny.model.modules() if isinstance(m, Attention)); x = torch.randn(2, m.qkv.in_channels, 8, 8)
    want = m(x); m.__class__,m.n,m.weight = Shared,1,1.
    same = x[:1].repeat(2,1,1,1)
    assert torch.allclose(m(same), want[:1].repeat(2,1,1,1), atol=1e-5) and torch.allclose(m(x)[1], want[1], atol=1e-5) and not torch.allclose(m(x)[0], want[0], atol=1e-4)

def test_cost(tiny):
    rows = []
    p = SharedPrior(tiny, photos(3)); p.model.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    restore(photos(), p, K=10)
    assert rows==[5]*10

def test_an_albums_numbers_grow_with_the_side():
    small,large = AlbumMean(torch.zeros(1,3,64,64)),AlbumMean(torch.rand(1,3,256,256))
    assert (small.side, small.N, large.side, large.N)==(15, 4, 61, 16) and len(small.pictures)==len(large.pictures)==25
    x = torch.arange(64.).view(1,1,8,8); far = shifted(x, 1, 2)
    assert torch.equal(far[4], x[0]) and torch.equal(far[8][0,:6,:6], x[0,0,2:,2:])                    # two pixels a step
