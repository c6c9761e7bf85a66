"Windows with known eyes, and the network that finds them."
import math
import pytest, torch
from gen2res.embedder import train_embedder
from gen2res.aligner import (EYES, Aligner, Moves, align_loss, examples, eye_error, find_eyes, jumbled, load_aligner, mirrored, piece, surrounded, train_aligner)
from gen2res.images import astronaut, resize
from gen2res.prior import PriorError, save_net, shipped

STILL = Moves(torch.zeros(1), torch.ones(1), torch.zeros(1, 2))
def dotted(n=1):
    "A black picture with a red spot where the left eye is, and a green one for the right."
    x = -torch.ones(n, 3, 128, 128)
    for c,(u,v) in enumerate(EYES): x[:,c,round(v*128)-2:round(v*128)+2,round(u*128)-2:round(u*128)+2] = 1
    return x
def spots(w):
    "(x, y) of the two spots, as shares of the side."
    m = (w[:,:2]+1).flatten(2)+1e-9; s = w.shape[-1]; at = (torch.arange(s)+.5)/s
    grid = torch.stack(torch.meshgrid(at, at, indexing='xy')).flatten(1)
    return (m/m.sum(2, keepdim=True)@grid.T).flatten(1)

def test_the_eyes_are_where_the_window_shows_them():
    g = torch.Generator().manual_seed(0); moves = Moves.draw(40, g, 60, (.8, 1.7), .15)
    seen,said = spots(moves.see(dotted(40))),moves.eyes()
    inside = ((said>.05)&(said<.95)).all(1)
    assert inside.sum()>20 and (seen-said)[inside].abs().max() < .012

def test_a_still_window_shows_the_portrait(): 
    assert torch.allclose(STILL.eyes(), torch.tensor(EYES).flatten()[None], atol=1e-6)
    x = astronaut(128); assert torch.allclose(STILL.see(x), x, atol=1e-5)

def test_mirrored_is_the_mirror():
    moves = Moves(torch.tensor([.3]), torch.tensor([1.2]), torch.tensor([[.1, -.1]])); w = moves.see(dotted())
    flipped = w.flip(-1)[:,[1,0,2]]                                        # left is right
    assert torch.allclose(spots(flipped), mirrored(moves.eyes()), atol=.012)

def test_error_is_in_distances_between_the_eyes():
    t = torch.tensor([[.3, .5, .5, .5]]); assert eye_error(t, t)==0 and eye_error(t+torch.tensor([.2, 0, .2, 0]), t)==pytest.approx(1)

def test_examples_are_functions_of_the_generator():
    x = astronaut(128).repeat(8, 1, 1, 1); make = lambda: examples(x, torch.Generator().manual_seed(3))
    (a,e,f),(b,*_) = make(),make()
    assert torch.equal(a, b) and a.shape==(8,3,64,64) and e.shape==(8,4) and f.tolist()==[False]*2+[True]*6 and a.abs().max()<=1

def test_faceless_windows_hold_no_face():
    x,g = astronaut(128).repeat(4, 1, 1, 1),torch.Generator().manual_seed(0)
    assert piece(x, g).shape==jumbled(x, g).shape==(4,3,128,128)
    j = jumbled(x, g); assert j.mean()==pytest.approx(x.mean().item(), abs=.05) and (j-x).abs().mean()>.1

def test_being_sure_and_wrong_costs():
    true,face = torch.tensor([[.37,.46,.63,.46]]),torch.tensor([True]); off = true+.05
    loss = lambda e, b: align_loss([e, torch.tensor([b]), torch.tensor([9.])], true, face)
    assert loss(off, -3.)>loss(off, -1.) and loss(true, -3.)<loss(true, -1.)

def test_training_learns_and_is_deterministic():
    x = ((astronaut(128)+1)*127.5).byte().repeat(4, 1, 1, 1); seen = []
    a = train_aligner(x, 12, 8, width=4, progress=False, callback=lambda run, loss: seen.append(loss)); b = train_aligner(x, 12, 8, width=4, progress=False)
    assert sum(seen[-3:])<sum(seen[:3]) and all(torch.equal(p, q) for p,q in zip(a.parameters(), b.parameters()))

@pytest.mark.parametrize('train,kw', [(train_aligner, dict(batch=8)), (lambda x, *a, **kw: train_embedder(resize(x.float(), 64).byte(), range(len(x)), *a, **kw), dict(people=4))])
def test_a_killed_training_goes_on(train, kw, tmp_path):
    x = ((astronaut(128)+1)*127.5).byte().repeat(4, 1, 1, 1); seen = []
    def stop(run, loss): seen.append(run.it); assert run.it<4, 'the power goes'
    kw = dict(iters=6, width=4, progress=False, **kw); whole = train(x, **kw)
    with pytest.raises(AssertionError, match='power'): train(x, out=tmp_path, save_seconds=0, callback=stop, **kw)
    again = train(x, out=tmp_path, callback=lambda run, loss: seen.append(run.it), **kw)
    assert seen==[1,2,3,4,4,5,6] and not again.training and all(torch.equal(p, q) for p,q in zip(whole.state_dict().values(), again.state_dict().values()))
    with pytest.raises(ValueError, match='another pictures'): train(x.flip(-1), out=tmp_path, **kw)

def test_saved_and_loaded(tmp_path):
    net = Aligner(4).eval(); x = torch.rand(2, 3, 50, 50)*2-1
    again = load_aligner(save_net(net, tmp_path)); assert (net(x)[0]-again(x)[0]).abs().max()<1e-2
    (tmp_path/'config.json').write_text('{}x')
    load_aligner.cache_clear()
    with pytest.raises(PriorError, match='no Aligner'): load_aligner(tmp_path)

# the one that comes along

def test_it_is_small(): assert sum(f.stat().st_size for f in shipped('align64').iterdir())<2e6

@pytest.mark.parametrize('turn,side', [(0, 1.), (30, 1.2), (-45, 1.3), (15, 1.6)])
def test_it_finds_her_eyes(turn, side):
    moves = Moves(torch.tensor([turn*math.pi/180]), torch.tensor([side]), torch.tensor([[.1, .05]]))
    w = resize(moves.see(astronaut(128)), 64)
    for x in (w, w.mean(1, keepdim=True).expand(-1,3,-1,-1), resize(resize(w, 24), 64), (w+.2*torch.randn(w.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)):
        e,b,p = find_eyes(x, load_aligner()); assert eye_error(e, moves.eyes())<.3 and p>.5 and b<.5

def test_brightness_and_cast_do_not_matter():
    x = astronaut(64); e = find_eyes(x, load_aligner())[0]
    assert (find_eyes(.5*x-.2, load_aligner())[0]-e).abs().max()<.01
