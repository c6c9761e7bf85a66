"What a GPU does, as far as it can be tried without one: the kernels in Triton's interpreter, recorded iterations with a tape that calls."
import os, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pytest, torch
from torch import nn
from gen2res import cuda
from gen2res.prior import Prior
from gen2res.sample import denoise
from gen2res.schedule import Schedule
from gen2res.train import Diverged, Trainer, small_arch
from gen2res.tune import tune
from gen2res.unet import UNet

class Calls:
    "A tape that calls what it should have recorded, on tensors of its own."
    def pool(self): return None
    def __init__(self, f, given, pool=None): self.f,self.given,self.made,self.out = f,[x.clone() for x in given],0,torch.zeros(())
    def __call__(self, *given):
        for mine,x in zip(self.given, given): mine.copy_(x)
        self.made += 1
        return self.f(*self.given)

@pytest.fixture
def taped(monkeypatch):
    monkeypatch.setattr(cuda, 'Tape', Calls); monkeypatch.setattr(Trainer, '_recordable', lambda self: True)

KERNELS = '''
import torch, torch.nn.functional as F
from torch import nn
from gen2res import cuda
from gen2res.cuda import _Halved, _Plus, _Twice, forked, halved, in_two_passes, norm_act, plus, twice
torch.manual_seed(0)

def same(f, g, *leaves):
    "Values and gradients."
    leaves = [v.requires_grad_() for v in leaves]; r,made = None,[]
    for h in (f, g):
        y = h(*leaves); r = torch.randn_like(y) if r is None else r
        made.append([y, *torch.autograd.grad((y*r).sum(), leaves)])
    return [((a-b).norm()/a.norm()).item() for a,b in zip(*made)]

NORMS = (32,5,2,1,0,True), (96,5,2,2,1,True), (96,7,3,0,0,True), (64,3,1,1,0,False), (64,5,3,3,1,True), (64,5,2,4,0,True), (384,4,2,1,1,True), (128,16,1,0,1,False), (64,40,2,1,1,True)
JOINED = (32,0,5,2,True), (96,0,6,1,False), (96,32,5,2,True), (64,128,4,3,True), (32,96,9,1,False)
DROPPED = (64,6,2,.1), (96,5,3,.5), (128,9,1,.3)
never = lambda x, P: False
for small,tile,programs,norms,joins,drops in (                                # a group at once; in programs of one tile, of several; and in many programs
        (cuda._is_small, 4096, 512, NORMS[::2], JOINED[::2], DROPPED[:2]), (never, 4096, 512, NORMS, JOINED[1::2], DROPPED[1:]),
        (never, 4096, 4, [(96,13,2,2,1,True)], [(32,32,13,2,True)], []), (never, 128, 512, [(96,7,2,2,1,True)], [(32,32,7,2,True)], [])):
    cuda._is_small,cuda.TILE,cuda.PROGRAMS = small,tile,programs
    for C,side,B,mod,pre,act in norms:
        norm = nn.GroupNorm(32, C); nn.init.normal_(norm.weight, 1, .3); nn.init.normal_(norm.bias)
        of = lambda f: lambda x, w, b, *more: f(norm, x, more[0] if mod else None, act, more[-1] if pre else None)   # w, b: the norm's own
        mods = {1: torch.randn(B, 2*C), 2: torch.randn(B, 5*C)[:,C:3*C], 3: torch.randn(1, 2*C), 4: torch.randn(B, 4*C)[:,::2]}       # 2: of several blocks; 3: one for all
        leaves = [torch.randn(B, C, side, side)*2+.7, norm.weight, norm.bias] + ([mods[mod][...,None,None]*.3] if mod else []) + [torch.randn(C)]*pre
        off = same(of(norm_act), of(lambda *a: in_two_passes(*a)[0]), *leaves)
        assert max(off) < 2e-6, (C, side, B, mod, pre, act, off)
    for C,C2,side,B,act in joins:
        norm = nn.GroupNorm(32, C+C2); nn.init.normal_(norm.weight, 1, .3); nn.init.normal_(norm.bias)
        of = lambda f: lambda x, w, b, *also: torch.stack(f(norm, x, act, *also))                # both are used, as by a shortcut
        two = lambda norm, x, act, also=None: in_two_passes(norm, x, act=act, also=also)
        off = same(of(forked), of(two), torch.randn(B, C, side, side), norm.weight, norm.bias, *[torch.randn(B, C2, side, side)]*bool(C2))
        assert max(off) < 2e-6, (C, C2, side, B, act, off)
    for C,side,B,p in drops:
        norm = nn.GroupNorm(32, C); x,mod,pre = torch.randn(B, C, side, side),torch.randn(B, 2*C)[...,None,None]*.3,torch.randn(C)
        def dropped(x, w, b, mod, pre, seed=1): torch.manual_seed(seed); return in_two_passes(norm, x, mod, True, pre, p)[0]
        kept = dropped(x, None, None, mod, pre)!=0; share,other = kept.float().mean().item(),dropped(x, None, None, mod, pre, 2)!=0
        assert B==1 or not torch.equal(kept[0], kept[1])
        assert abs(share-(1-p)) < 4*(p*(1-p)/x.numel())**.5 and abs((kept==other).float().mean().item() - p*p-(1-p)**2) < 6*(1/x.numel())**.5
        assert max(same(lambda x, w, b, mod, pre: norm_act(norm, x, mod, True, pre)*kept/(1-p), dropped, x, norm.weight, norm.bias, mod, pre)) < 2e-6
for side,C in ((4, 32), (6, 96), (10, 64)):
    x,cuda.TILE = torch.randn(2, C, side, side),4096
    assert max(same(twice, _Twice.apply, x)) < 1e-6 and max(same(halved, _Halved.apply, x)) < 1e-6, side
    assert max(same(plus, _Plus.apply, x, torch.randn_like(x), torch.randn(C))) < 1e-6
'''

@pytest.mark.skipif(cuda.triton is None, reason='this build of torch comes without Triton')
def test_kernels_compute_the_norm_and_its_gradients():
    run = subprocess.run([sys.executable, '-c', KERNELS], env=os.environ | dict(TRITON_INTERPRET='1'), capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert run.returncode==0, run.stderr[-800:]

def pictures(n=8, side=16): return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(0)).byte()

def trained(iters, **kw):
    t = Trainer(pictures(), None, small_arch(16, width=32), iters=iters, batch=4, amp=False, **kw)
    losses = []; t.run(False, lambda run, loss: losses.append(loss))
    return t,losses

def test_recorded_iterations_are_the_plain_ones(taped, monkeypatch):
    t,losses = trained(8)
    assert t.plain==3 and t.played==5==t.tape[0].made==t.tape[1].made
    monkeypatch.setattr(Trainer, '_recordable', lambda self: False); plain,same = trained(8)
    assert plain.played==0 and losses==same
    assert all(torch.equal(a, b) for a,b in zip(t.avg.parameters(), plain.avg.parameters()))

def test_a_recorded_iteration_without_a_number_leaves_the_weights_alone(taped):
    t = Trainer(pictures(), None, small_arch(16, width=32), iters=9, batch=4, amp=False)
    for _ in range(4): t.step()
    before = [p.clone() for p in t.model.parameters()]
    t.ahead[1][...] = float('nan')
    with pytest.raises(Diverged): t.step()
    assert all(torch.equal(a, b) for a,b in zip(before, t.model.parameters()))

def test_gradients_asked_for_ahead_are_of_the_next_iteration_only(taped):
    t,same = (Trainer(pictures(), None, small_arch(16, width=32), iters=6, batch=4, amp=False) for _ in range(2))
    for _ in range(4): t.step(); same.step()
    good,t.tape = t.tape,(t.tape[0], lambda loss: torch.full((2,), float('nan')))  # this one is no number: the next has been asked for
    with pytest.raises(Diverged): t.step()
    assert t.ahead[0]==5 and t.it==4
    t.tape = good; assert [t.step() for _ in range(2)]==[same.step() for _ in range(2)]
    assert all(torch.equal(a, b) for a,b in zip(t.model.parameters(), same.model.parameters()))

def test_hooks_hear_of_played_passes(taped, monkeypatch):
    heard = []
    t = Trainer(pictures(), None, small_arch(16, width=32), iters=3, batch=4, amp=False)
    t.model.register_forward_hook(lambda m, a, out: heard.append(len(out))); t.model.register_full_backward_pre_hook(lambda m, grads: heard.append(-len(grads[0])))
    t.plain = 3
    class Silent(Calls):                                                     # as a GPU's: what is played calls no hook
        def __call__(self, *given):
            first = not self.made; hooks = dict(t.model._forward_hooks),dict(t.model._backward_pre_hooks)
            if not first: t.model._forward_hooks.clear(); t.model._backward_pre_hooks.clear()
            out = super().__call__(*given)
            t.model._forward_hooks.update(hooks[0]); t.model._backward_pre_hooks.update(hooks[1])
            return out
    monkeypatch.setattr(cuda, 'Tape', Silent)
    for _ in range(3): t.step()
    assert heard==[4, -4]*3

def test_a_recorded_walk_is_the_plain_one(monkeypatch):
    torch.manual_seed(0); net = UNet(**small_arch(16, width=32)).eval().requires_grad_(False)
    for p in net.parameters():
        if not p.any(): nn.init.normal_(p, std=.02)
    prior = Prior(net, Schedule.linear(), 16); x = torch.randn(2, 3, 16, 16)
    plain = denoise(prior, x, [400, 300, 200, 100], rng=[1, 2])
    monkeypatch.setattr(cuda, 'Tape', Calls)
    monkeypatch.setattr(Prior, '_for_walks', lambda self: cuda.Recorded(self.model))
    seen = []
    monkeypatch.setattr(cuda, 'told', lambda net, batch: seen.append(len(batch)))
    assert torch.equal(denoise(prior, x, [400, 300, 200, 100], rng=[1, 2]), plain) and seen==[2, 2] and prior.quick is None

def test_a_recording_is_made_anew_after_others_had_the_memory(taped, monkeypatch):
    t,losses = trained(9, val=pictures(4), val_every=5)
    assert t.plain==3 and t.played==4 and t.tape is None                         # of that after the first validation; the last one took it along
    monkeypatch.setattr(Trainer, '_recordable', lambda self: False); assert trained(9, val=pictures(4), val_every=5)[1]==losses

class Broken(Calls):
    def __init__(self, f, given, pool=None):
        super().__init__(f, given); self.out = f(*given)
        if len(given)==1 or self.both: raise RuntimeError('operation not permitted when stream is capturing')
    both = False

@pytest.mark.parametrize('both', [False, True])                                 # an iteration's step cannot be recorded, or nor can its gradients
def test_what_cannot_be_recorded_goes_on_plainly(monkeypatch, recwarn, both):
    monkeypatch.setattr(Broken, 'both', both)
    monkeypatch.setattr(cuda, 'Tape', Broken); monkeypatch.setattr(Trainer, '_recordable', lambda self: True)
    t = Trainer(pictures(), None, small_arch(16, width=32), iters=6, batch=4, amp=False)
    for _ in range(3): t.step()
    monkeypatch.setattr(Trainer, 'guarded', lambda self, *batch: setattr(self.opt, 'found_inf', torch.tensor(3e4)))
    losses = [t.step() for _ in range(3)]
    assert t.tape is False and t.plain==6 and t.opt.found_inf is None and len({id(w) for w in recwarn if 'recorded' in str(w.message)})==1
    monkeypatch.undo(); plain = Trainer(pictures(), None, small_arch(16, width=32), iters=6, batch=4, amp=False)
    assert [plain.step() for _ in range(6)][3:]==losses
    net = nn.Conv2d(3, 3, 1); r = cuda.Recorded(net); monkeypatch.setattr(cuda, 'Tape', Broken)
    with torch.no_grad(): assert all(torch.equal(r(x), net(x)) for x in torch.randn(5, 1, 3, 4, 4)) and list(r.tapes.values())==[None]

def test_threads_do_not_get_each_others_answers(monkeypatch):
    monkeypatch.setattr(cuda, 'Tape', Calls); net = nn.Identity(); r = cuda.Recorded(net)
    def ask(k):
        with torch.no_grad(): return all(r(torch.full((1, 3, 4, 4), float(k))).unique().tolist()==[k] for _ in range(300))
    before = sys.getswitchinterval(); sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as pool: assert all(pool.map(ask, (1, 2)))
    finally: sys.setswitchinterval(before)
