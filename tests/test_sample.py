"The loop: closed forms, equalities, and counted costs."
import math
from functools import partial
import pytest, torch
from gen2res.constraints import Constraint, Guide
from gen2res.images import seeded
from gen2res.prior import GaussianPrior
from gen2res.restore import paper_K, restore
from gen2res.sample import ddim, ddpm, denoise, dpmpp, generate
from gen2res.schedule import Schedule, equivalent_K, judge_error, suggest_K

def photos(n=3, side=16): return seeded(40, n).randn_like(torch.zeros(n,3,side,side)).clamp(-1,1)

@pytest.mark.parametrize('rule', [ddpm, ddim, dpmpp, partial(ddim, eta=.5)])
def test_alone_equals_in_company(tiny, rule):
    y = photos()
    together = restore(y, tiny, K=30, steps=10, seeds=[5,6,7], step=rule)
    for i in range(3): assert (restore(y[i:i+1], tiny, K=30, steps=10, seeds=[5+i], step=rule)-together[i:i+1]).abs().max() < 1e-5

def test_no_steps_no_change(tiny):
    y = photos()
    assert torch.equal(restore(y, tiny, K=0), y) and torch.equal(denoise(tiny, y, []), y)
    assert torch.equal(denoise(tiny, y, [], final='x0'), y)

def test_same_seed_same_picture(tiny):
    y = photos()
    assert torch.equal(restore(y, tiny, K=9, seeds=1), restore(y, tiny, K=9, seeds=1))
    assert not torch.equal(restore(y, tiny, K=9, seeds=1), restore(y, tiny, K=9, seeds=2))

def test_global_random_state_is_left_alone(tiny):
    torch.manual_seed(0); before = torch.get_rng_state(); generate(tiny, 2, steps=3)
    assert torch.equal(before, torch.get_rng_state())

@pytest.mark.parametrize('norm', ['l2', 'l2sq', 'l1'])
def test_guide_of_no_strength_is_plain(tiny, norm):
    y = photos()
    assert torch.equal(restore(y, tiny, K=12, constraints=[Guide(y, 0., norm=norm)]), restore(y, tiny, K=12))

def test_guide_brings_closer(tiny):
    y = photos(); away = lambda **kw: (restore(y, tiny, K=60, **kw)-y).pow(2).mean()
    assert away(constraints=[Guide(y, 1.)]) < away(constraints=[Guide(y, 1., every=10)]) < away()

class Counting:
    "Wraps a prior's network and counts its forwards, and how many of them could be differentiated."
    def __init__(self, prior): self.net,self.forwards,self.with_grad,prior.model = prior.model,0,0,self
    def __call__(self, x, t): self.forwards += 1; self.with_grad += x.requires_grad; return self.net(x, t)

def test_costs_are_what_they_should_be(tiny, monkeypatch):
    y,n,backwards,real = photos(),Counting(tiny),[0],torch.autograd.grad
    def grad(*a, **kw): backwards[0] += 1; return real(*a, **kw)
    monkeypatch.setattr(torch.autograd, 'grad', grad)
    ts = tiny.schedule.timesteps(60)
    class Twice(Constraint): repeats = 2
    denoise(tiny, y, ts, [Guide(y, .1, every=20), Twice(hi=9)])
    assert (n.forwards, n.with_grad, backwards[0])==(70, 3, 3)            # ten steps twice; a gradient on indices 59, 39, 19
    n.forwards = n.with_grad = 0
    denoise(tiny, y, tiny.schedule.timesteps(60, 20), [Guide(y, .1, every=5)])
    assert (n.forwards, n.with_grad, backwards[0])==(20, 4, 7)            # every fifth step that is taken

def test_guided_alone_equals_in_company(tiny):
    y = photos(); run = lambda y,s: restore(y, tiny, K=20, seeds=s, constraints=[Guide(y, .5, every=3)])
    together = run(y, [5,6,7])
    for i in range(3): assert (run(y[i:i+1], [5+i])-together[i:i+1]).abs().max() < 1e-5

def test_two_guides_at_once(tiny):
    y = photos()
    a = restore(y, tiny, K=12, constraints=[Guide(y, .5), Guide(y, .5)])
    assert (a-restore(y, tiny, K=12, constraints=[Guide(y, 1.)])).abs().max() < 1e-4      # two halves are a whole

def test_nothing_keeps_the_graph(tiny):
    seen = []
    denoise(tiny, photos(1), [9,5,2], [Guide(photos(1), .1)], callback=seen.append)
    assert not any(getattr(st, k).requires_grad for st in seen for k in ('x', 'x0', 'eps', 'v', 'mean', 'var', 'x_next'))

@pytest.mark.parametrize('t', [999, 500, 0])
def test_a_single_step_from_anywhere(tiny, t): assert denoise(tiny, photos(1), [t]).isfinite().all()

def test_indices_of_any_kind(tiny):
    want = denoise(tiny, photos(1), [9,5,2])
    assert torch.equal(denoise(tiny, photos(1), torch.tensor([9,5,2])), want) and torch.equal(denoise(tiny, photos(1), torch.tensor([9,5,2]).numpy()), want)

def test_wrong_arguments_of_the_loop(tiny):
    with pytest.raises(ValueError, match='final'): denoise(tiny, photos(1), [3], final='xo')
    with pytest.raises(ValueError, match='noise index'): denoise(tiny, photos(1), [1000])
    with pytest.raises(ValueError, match='one seed'): restore(photos(2), tiny, K=3, seeds=[1])

def test_a_walk_starts_at_K(tiny):
    one = []; restore(photos(1), tiny, K=30, steps=1, callback=one.append)
    assert [st.t for st in one]==[29]
    with pytest.raises(ValueError, match='below K-1'): restore(photos(1), tiny, K=200, steps='ddim5')
    assert restore(photos(1), tiny, K=30, steps='2,3,4').isfinite().all()

def test_windows_of_guide():
    hits = lambda **kw: [t for t in range(1000) if Guide(torch.zeros(1,3,2,2), **kw).active(t, t)]
    assert hits(every=10)==list(range(9,1000,10)) and hits(every=0, last=3)==[997,998,999]
    assert hits(every=10, first=500)[0]==509 and hits(every=10, hi=49)==[9,19,29,39,49]

def test_unknown_norm_is_named():
    with pytest.raises(ValueError, match='l2, l2sq, l1'): Guide(photos(), norm='l3')

def test_hooks_run_in_order(tiny):
    seen = []
    class Spy(Constraint):
        def on_x0(self, st): seen.append('x0'); assert st.mean is None
        def on_mean(self, st): seen.append('mean'); assert st.x_next is None
        def on_sample(self, st): seen.append('sample'); assert st.x_next is not None
    denoise(tiny, photos(1), [0], [Spy()])
    assert seen==['x0', 'mean', 'sample']

def test_stopping_early_gives_the_prediction(tiny):
    last = []
    x = denoise(tiny, photos(1), [50,40,30], final='x0', callback=lambda st: last.append(st.x0))
    assert torch.equal(x, last[-1]) and x.abs().max()<=1

def test_callback_may_stop(tiny):
    def stop(st):
        if st.t==5: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): restore(photos(1), tiny, K=10, callback=stop)

@pytest.mark.parametrize('steps', [20, 200])
def test_variance_of_the_gaussian_walk(steps):
    g = GaussianPrior(-.1, .4); ts = g.schedule.timesteps(400, steps)
    x = denoise(g, seeded(1,8).randn_like(torch.zeros(8,3,48,48)), ts, rng=2, clip=False)
    m,v = 0.,1.
    for t,s in zip(ts, ts[1:]+[-1]):
        a = g.schedule.a(t); gain = a**.5*g.std**2/(a*g.std**2+1-a); bias = g.mean*(1-gain*a**.5)
        c0,ct,var,_ = g.schedule.posterior(t, s)
        m,v = (c0*gain+ct)*m + c0*bias, (c0*gain+ct)**2*v + var*(s>=0)
    assert abs(x.mean()-m) < 5*(v/x.numel())**.5 and abs(x.var()/v-1) < 5*(2/x.numel())**.5

def test_noise_of_your_own(tiny):
    zero = denoise(tiny, photos(1), [9,5,2], rng=torch.zeros_like)
    assert torch.equal(zero, denoise(tiny, photos(1), [9,5,2], rng=lambda x: x*0))

def test_prior_on_another_schedule(tiny):
    tiny.schedule = Schedule.cosine(200); y = photos(1)
    assert restore(y, tiny, K=150, steps=9, constraints=[Guide(y, .1, every=2, last=20, T=200)]).isfinite().all()
    assert 0 < paper_K(tiny) < 200

# -- schedule --------------------------------------------------------------------------------------------------
def test_kl_falls_and_entropy_rises():
    s,x,y = Schedule.cosine(),torch.zeros(1,3,4,4),torch.ones(1,3,4,4)
    kl = [s.kl(x, y, t, per='image').item() for t in range(0, 1000, 50)]
    assert kl==sorted(kl, reverse=True) and abs(s.kl(x, y, 300).sum()-s.kl(x, y, 300, per='image')) < 1e-4
    assert judge_error(0.)==.5 and judge_error(1000.) < 1e-6
    with pytest.raises(ValueError, match='per'): s.kl(x, y, 3, per='pixels')

def test_kl_is_that_of_torch():
    s,x,y = Schedule.linear(),torch.tensor(.3),torch.tensor(-.2)
    N = torch.distributions.Normal; at = lambda v: N(s.a(500)**.5*v, (1-s.a(500))**.5)
    assert abs(s.kl(x, y, 500)-torch.distributions.kl_divergence(at(x), at(y))) < 1e-6

def test_timesteps_refuse():
    s = Schedule.linear()
    with pytest.raises(ValueError, match='0..1000'): s.timesteps(1001)
    with pytest.raises(ValueError, match='steps out of'): s.timesteps(10, 11)
    with pytest.raises(ValueError, match='integer stride'): s.timesteps(10, 'ddim7')

def test_equivalent_K():
    assert equivalent_K(0, 256, 64)==0 and equivalent_K(200, 256, 256)==200
    assert abs(equivalent_K(200, 256, 64)-52)<=1 and abs(equivalent_K(600, 512, 64)-210)<=2 and abs(equivalent_K(360, 512, 64)-60)<=2
    assert all(abs(equivalent_K(equivalent_K(k, 256, 128), 128, 256)-k)<=2 for k in (100, 200, 600))
    for s in (Schedule.cosine(), Schedule.linear(200)):                                  # the same noise on any schedule
        assert abs(math.log(s.snr(equivalent_K(200, 256, 256, s)-1)/Schedule.linear().snr(199))) < .1

def test_out_of_range_is_refused():
    s,x = Schedule.linear(),torch.zeros(1,3,2,2)
    for t in (1000, -2):
        with pytest.raises(ValueError, match='noise index'): s.diffuse(x, t, x)
    assert torch.equal(s.diffuse(x+1, -1, x+5), x+1) and torch.equal(s.diffuse(x+1, torch.tensor([-1]), x+5), x+1)
    with pytest.raises(ValueError, match='betas'): Schedule.linear(10)

def test_suggest_K_does_what_it_says():
    s,x = Schedule.linear(),torch.zeros(2,3,64,64); y = torch.stack([x[0]+.1, x[1]+.3])
    a,b = suggest_K(s, x, y, nats=500)
    assert a < b and all(s.kl(x, y, k-1, per='image')[i] <= 500 < s.kl(x, y, k-2, per='image')[i] for i,k in enumerate((a,b)))
    assert suggest_K(s, x, torch.stack([x[0], y[1]]), nats=500)==[0, b]

def test_K_of_the_paper(tiny, faces64): assert paper_K(faces64)==equivalent_K(200, 256, 64)

def test_a_step_taken_again_starts_from_where_it_did(tiny):
    "Noised back up in between: the marginal of the second start is that of the first."
    class Spy(Constraint):
        repeats,seen = 2,[]
        def on_mean(self, st): self.seen.append(st.x)
    x,spy = photos(1),Spy(); noise = iter([torch.full_like(x, .5), torch.full_like(x, -.3), *[torch.zeros_like(x)]*3])
    denoise(tiny, x, [500, 400], [spy], rng=lambda v: next(noise))
    a = tiny.schedule.a(500)/tiny.schedule.a(400)
    once = denoise_to(tiny, x, 500, 400, torch.full_like(x, .5))
    assert torch.equal(spy.seen[0], x) and torch.allclose(spy.seen[1], a**.5*once - (1-a)**.5*.3, atol=1e-5) and len(spy.seen)==4

def denoise_to(prior, x, t, s, noise):
    "One step by the loop itself."
    got = []
    def stop(st): got.append(st.x_next); raise StopIteration
    with pytest.raises(StopIteration): denoise(prior, x, [t, s], rng=lambda v: noise, callback=stop)
    return got[0]

def test_a_rule_may_ask_again(tiny):
    "What it asks is clamped and counted."
    cost,most = [],[]
    def looks_twice(st):
        ddim(st)
        if st.s>=0: x0 = st.ask(st.mean, st.s)[0]; most.append(x0.abs().max().item()); st.x0 = (st.x0+x0)/2; ddim(st)
    walk = lambda **kw: denoise(tiny, photos(), tiny.schedule.timesteps(900, 5), step=looks_twice, callback=lambda st: cost.append(st.cost), **kw)
    assert walk().isfinite().all() and cost==[(2,0), (4,0), (6,0), (8,0), (9,0)] and max(most)<=1
    most.clear(); walk(clip=False); assert max(most)>1

def test_no_variance_is_none_however_it_is_written(tiny):
    def still(st): st.mean,st.var = st.x,0
    assert torch.equal(denoise(tiny, photos(), [9, 5, 2], step=still, rng=None), photos())

def test_what_cannot_walk_is_one_line(tiny):
    with pytest.raises(ValueError, match='must be a list'): denoise(tiny, photos(), [9], Constraint())
    with pytest.raises(ValueError, match="step must be a step rule"): denoise(tiny, photos(), [9], step='ddim')

def test_a_constraint_need_not_call_its_parent(tiny):
    class Mine(Constraint):
        def __init__(self): self.calls = 0
        def on_x0(self, st): self.calls += 1
    m = Mine(); denoise(tiny, photos(), [9, 5, 2], [m])
    assert m.calls==3
