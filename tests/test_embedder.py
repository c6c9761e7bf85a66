import math, numpy as np, pytest, torch
from gen2res.degrade import degrade
from gen2res.prior import save_net
from gen2res.embedder import (Embedder, against, augmented, covered, cross_video, embed, load_embedder, margin_softmax, moved, people_of,
                              perceptual, rank1, relit, set_features, train_embedder, two_views, verification, whitened)
from gen2res.images import astronaut
from gen2res.metrics import METRICS, metric
from gen2res.prior import shipped

x = astronaut(64)

def test_unit_vectors_whatever_the_side():
    e = embed(torch.cat([astronaut(64), astronaut(64)]), load_embedder())
    assert e.shape==(2, 128) and torch.allclose(e.norm(dim=1), torch.ones(2), atol=1e-5)
    assert (embed(astronaut(256), load_embedder())*e[:1]).sum() > .9

def test_alone_as_in_a_batch():
    net = load_embedder(); b = torch.cat([x, x.flip(2), -x])
    assert torch.allclose(net(b)[1:2], net(b[1:2]), atol=1e-5)
    assert torch.allclose(embed(x, net), embed(x.flip(-1), net), atol=1e-5)      # a mirror image is the same person

def test_margin_makes_it_harder():
    cos = torch.tensor([[.8,.1],[.2,.7]])
    plain = torch.nn.functional.cross_entropy(16*cos, torch.arange(2))
    assert torch.allclose(margin_softmax(cos, 0.), plain, atol=1e-5)
    by_hand = cos.clone()
    for i in range(2): by_hand[i,i] = math.cos(math.acos(cos[i,i].item())+.2)
    assert torch.allclose(margin_softmax(cos, .2), torch.nn.functional.cross_entropy(16*by_hand, torch.arange(2)), atol=1e-5)
    assert margin_softmax(cos, .2) > plain

def test_margin_beyond_pi_stays_monotone():
    loss = [margin_softmax(torch.eye(2)*c, .5).item() for c in torch.linspace(-1, 1, 50)]
    assert all(a>b for a,b in zip(loss, loss[1:]))

@pytest.mark.parametrize('f', [moved, relit, covered, augmented])
def test_augmentations_by_seed(f):
    g = lambda s: torch.Generator().manual_seed(s); b = x.expand(6,-1,-1,-1).clone(); before = b.clone()
    a = f(b, g(0))
    assert torch.equal(a, f(b, g(0))) and not torch.equal(a, f(b, g(1))) and torch.equal(b, before)
    assert a.shape==b.shape and a.abs().max() <= 1

def test_two_views():
    rows = people_of(['a','b','a','c'])
    assert sorted(map(sorted, rows))==[[0,2],[1],[3]]
    v = two_views(rows, 3, torch.Generator().manual_seed(0))
    assert len(v)==6 and all({a,b} in ({0,2},{1},{3}) for a,b in zip(v[:3], v[3:]))

def test_it_learns(monkeypatch):
    "Made-up people, moved only: the loss of a training whose difficulty does not grow must fall."
    monkeypatch.setattr('gen2res.embedder.augmented', lambda x, g, strength: moved(x, g))
    g = torch.Generator().manual_seed(0)
    images = (torch.nn.functional.interpolate(torch.rand(12, 3, 6, 6, generator=g), 64, mode='bicubic').clamp(0, 1)*255).byte()
    losses = []
    train_embedder(images, range(12), iters=40, people=12, width=8, margin=0., progress=False, callback=lambda run, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < .5*np.mean(losses[:5])

def test_whitened():
    net = Embedder(8).eval(); images = (torch.rand(200, 3, 64, 64, generator=torch.Generator().manual_seed(0))*255).byte()
    a,b = whitened(net, images),whitened(net, images)
    assert a.config['white'] and torch.equal(a.head[1].weight, b.head[1].weight) and torch.equal(a.stem[0].weight, net.stem[0].weight)
    u = images.float()/127.5-1
    z = (a.project(u)+a.project(u.flip(-1)))/2
    assert z.mean(0).abs().max() < 1e-2 and (z.std(0)[:20]-1).abs().max() < .05           # the widest directions, each of width 1

def test_saved_and_loaded(tmp_path):
    net = Embedder(8, white=True).eval()
    again = load_embedder(save_net(net, tmp_path))
    assert (embed(x, net)*embed(x, again)).sum() > .999

def test_small_enough(): assert (shipped('ids64')/'model.safetensors').stat().st_size < 8e6

def test_same_person_through_damage():
    m = metric('ids64')
    assert m(x, x).item() > .999
    assert all(m(degrade(x, r, seeds=0, **k), x) > .5 for r,k in [('old', {}), ('jpeg:20', {}), ('motion', {}), ('camera:mild', dict(scale=1.5))])

def test_distances():
    assert metric('pd64')(x, x).item()==0 and metric('pd64')(degrade(x, 'small:16'), x) > metric('pd64')(degrade(x, 'small:40'), x) > 0
    A = torch.cat([degrade(x, 'classic:swinir', seeds=i) for i in range(8)])
    assert metric('fd64').dataset(A, A) < 1e-6 < metric('fd64').dataset(A, -A)
    assert set_features(x, load_embedder()).ndim==2 and perceptual(x, x.flip(-1), load_embedder()) > 0

@pytest.mark.parametrize('name', ['ids64', 'pd64', 'fd64'])
def test_carries_its_own_name(name): assert METRICS[name].weights is None and 'gen2res' in METRICS[name].source

def test_verification():
    S = torch.eye(5)
    assert verification(*against(S))==(1., 0.) and rank1(S)==1 and rank1(S.flip(0)) < .5
    assert verification(torch.tensor([5., -3, 2, 4]), torch.tensor([True, False, False, True]))==(1., 0.)     # any range of scores
    scores,same = cross_video(torch.arange(16.).view(4,4), torch.tensor([0,0,0,1]), torch.tensor([0,0,1,2]))
    assert len(scores)==5 and same.sum()==2                                           # the pair within a video is left out
