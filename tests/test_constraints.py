"Constraints: where they act, what they cost, and the published formulas by hand."
import math
from functools import partial
import pytest, torch
from gen2res.constraints import Constraint, Guide, LowFreq, PartialGuide, X0Guide
from gen2res.filters import lowpass
from gen2res.images import seeded
from gen2res.prior import GaussianPrior
from gen2res.restore import restore
from gen2res.sample import Step, ddim, ddpm, denoise

def photos(n=2, side=16): return seeded(40, n).randn_like(torch.zeros(n,3,side,side)).clamp(-1,1)

class Counted:
    "Counts forwards and backwards of a prior."
    def __init__(self, prior): self.prior,self.forwards,self.backwards = prior,0,0
    def __getattr__(self, k): return getattr(self.prior, k)
    def __call__(self, x, t):
        self.forwards += 1
        if x.requires_grad: x.register_hook(lambda g: setattr(self, 'backwards', self.backwards+1))
        return self.prior(x, t)

@pytest.mark.parametrize('make,forwards,backwards', [
    (lambda y: [], 40, 0), (lambda y: [Guide(y, .1, every=10)], 40, 4), (lambda y: [Guide(y, .1, every=10, first=20)], 40, 2),
    (lambda y: [Guide(y, .1, filter=lambda x: lowpass(x, 4))], 40, 40), (lambda y: [LowFreq(y, 4, lo=20)], 40, 0),
    (lambda y: [Guide(y, .1, every=0)], 40, 0), (lambda y: [Guide(y, .1, every=0, last=970)], 40, 10), (lambda y: [Guide(y, .1, every=10), Guide(y, .1, every=20)], 40, 6),
    (lambda y: [PartialGuide(y, .1, lo=10, hi=19, repeats=3)], 60, 0), (lambda y: [X0Guide(y, 5.)], 40, 0)])
def test_costs(tiny, make, forwards, backwards):
    y,counted,seen = photos(),Counted(tiny),[]
    restore(y, counted, K=40, constraints=make(y), callback=lambda st: seen.append(st.cost))
    assert (counted.forwards, counted.backwards)==(forwards, backwards)==seen[-1] and seen==sorted(seen) and len(seen)==40

def test_windows_that_make_no_sense():
    with pytest.raises(ValueError, match='repeats must be at least 1'): PartialGuide(photos(), repeats=0)
    with pytest.raises(ValueError, match='scale must be'): Guide(photos(), float('nan'))

def test_every_0_is_never(tiny):
    y = photos(); assert torch.equal(restore(y, tiny, K=20, constraints=[LowFreq(y, 4, every=0)]), restore(y, tiny, K=20))

def step_of(prior, x, t, rule=ddpm, **kw):
    "What one step of the loop does, with noise of zero."
    return denoise(prior, x, [t, t-1], rng=lambda v: torch.zeros_like(v), step=rule, final='x', **kw)

def test_partial_guide_by_hand():
    prior,y,seen = GaussianPrior(.1, .4),photos(1),[]
    x = photos(1).flip(-1)
    class Spy(Constraint):
        def on_mean(self, st): seen.append((st.mean.clone(), st.x0.clone(), st.var))
    rng = lambda v: torch.zeros_like(v)
    denoise(prior, x, [500, 499], [Spy(), PartialGuide(y, .7), Spy()], rng=rng)
    (before,x0,var),(after,_,_) = seen[:2]
    assert torch.allclose(after, before - .7*var*2*(x0-y), atol=1e-6)

def test_partial_guide_any_loss():
    x0,y = photos(1),photos(1).flip(-1)
    mean_colour = PartialGuide(y, 1., loss=lambda a, b: (a.mean((2,3))-b.mean((2,3))).pow(2).sum(1))
    g = mean_colour.gradient(x0)
    want = 2*(x0.mean((2,3), keepdim=True)-y.mean((2,3), keepdim=True))/256
    assert torch.allclose(g, want.expand_as(g), atol=1e-6) and not g.requires_grad

def test_partial_guide_needs_variance(tiny):
    y = photos()
    with pytest.raises(ValueError, match='this step rule has none: use ddpm'): restore(y, tiny, K=20, step=ddim, constraints=[PartialGuide(-y, 9.)])
    assert not torch.equal(restore(y, tiny, K=20, constraints=[PartialGuide(-y, 9.)]), restore(y, tiny, K=20))

def test_partial_guide_by_ddim_with_variance(tiny):
    y = photos(); walk = lambda *c: restore(y, tiny, K=20, step=partial(ddim, eta=1.), constraints=c)
    assert not torch.equal(walk(PartialGuide(-y, 9.)), walk())                              # the last step, which has none, is nothing to refuse

def test_further_gradients_are_taken_where_the_last_one_led(tiny):
    y,x,noise = photos(1),photos(1).flip(-1),iter([torch.full((1,3,16,16), .3), torch.full((1,3,16,16), -.2)])
    def first(st): seen.append(st); raise StopIteration
    seen = []
    with pytest.raises(StopIteration): denoise(tiny, x, [500, 499], [PartialGuide(y, .7, repeats=2)], rng=lambda v: next(noise), callback=first)
    st, = seen
    c0,ct,_,_ = tiny.schedule.posterior(500, 499); x0 = tiny(x, 500).x0.clamp(-1, 1); mean = c0*x0+ct*x
    there = mean - .7*st.var*2*(x0-y) + st.var**.5*.3
    assert torch.allclose(st.mean, mean - .7*st.var*2*(tiny(there, 500).x0.clamp(-1, 1)-y), atol=1e-5) and st.cost==(2, 0)
    assert torch.allclose(st.x_next, st.mean - .2*st.var**.5, atol=1e-6)

def test_x0_guide_by_hand():
    st = Step(None, None, 5, 4, None); st.x0 = photos(1).flip(-1); x0,y = st.x0.clone(),photos(1)
    X0Guide(y, 10.).on_x0(st)
    assert torch.allclose(st.x0, x0 - 10*2*(x0-y)/x0[0].numel(), atol=1e-6)
    st.x0 = x0; X0Guide(y, x0[0].numel()/2).on_x0(st)
    assert torch.allclose(st.x0, y, atol=1e-6)

def test_each_image_is_guided_alone(tiny):
    y = photos(3)
    for make in (lambda y: PartialGuide(y, .5, repeats=2), lambda y: X0Guide(y, 50.), lambda y: LowFreq(y, 4), lambda y: Guide(y, .5, norm='l1')):
        both = restore(y, tiny, K=15, seeds=[1,2,3], constraints=[make(y)])
        assert (restore(y[1:2], tiny, K=15, seeds=[2], constraints=[make(y[1:2])])-both[1:2]).abs().max() < 2e-5

@pytest.mark.parametrize('norm,value', [('l2', 5.), ('l2sq', 25.), ('l1', 7.)])
def test_norms(norm, value):
    d = torch.zeros(2,3,4,4); d[0,0,0,0],d[0,1,2,3] = 3.,-4.
    assert torch.allclose(Guide(d, norm=norm).norm(d), torch.tensor([value, 0.]))

def test_window_of_lowfreq(tiny):
    "Held down to index lo, free below."
    y,seen = photos(1),{}
    class Spy(LowFreq):
        def on_sample(self, st): seen[st.t] = True
    restore(y, tiny, K=30, constraints=[Spy(y, 4, lo=12)])
    assert sorted(seen)==list(range(12, 30))
