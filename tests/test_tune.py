"Tuning: the given prior untouched, the same by seed, resumed, in adapters, and stopped before it breaks."
import copy
import pytest, torch
from gen2res.images import astronaut, resize
from gen2res.prior import PriorError, load_prior
from gen2res.restore import Restorer
from gen2res.train import diffusion_loss
from gen2res.untuned import SharedPrior
from gen2res.tune import PRESETS, Experts, Tuner, binned, load_person, preset_for, save_person, tune, tuning_for

album = torch.cat([resize(astronaut(64), 16), resize(astronaut(64), 16).flip(-1)])
x = album[:1]
KW = dict(iters=4, batch=2, lr=1e-3)
def weights(p): return torch.cat([v.flatten() for v in p.model.state_dict().values()])
def error(p, below=1000):
    g = torch.Generator().manual_seed(0); n = torch.randn(64,3,16,16, generator=g); t = torch.randint(0, below, (64,), generator=g)
    x0 = album[torch.arange(64)%2]; x_t = p.schedule.diffuse(x0, t, n)
    return (p(x_t, t).eps-n).pow(2).mean().item()

@pytest.mark.parametrize('lora', [None, 2])
def test_a_new_prior_and_the_old_one_as_it_was(tiny, lora):
    before,mode = weights(tiny).clone(),[m.training for m in tiny.model.modules()]
    tuned = tune(tiny, album, lora=lora, **KW)
    assert torch.equal(weights(tiny), before) and [m.training for m in tiny.model.modules()]==mode and not any(p.requires_grad for p in tiny.model.parameters())
    assert not torch.equal(weights(tuned), before) and tuned.model.state_dict().keys()==tiny.model.state_dict().keys()
    assert not tuned.model.training and not any(p.requires_grad for p in tuned.model.parameters())
    assert tuned.side==tiny.side and tuned.variance==tiny.variance and tuned.card['tuned']['pictures']==2 and 'tuned' not in tiny.card

def test_it_learns_the_album(tiny): assert error(tune(tiny, album, iters=60, batch=8, lr=1e-3)) < .8*error(tiny)

def test_by_seed(tiny):
    a = weights(tune(tiny, album, **KW))
    assert torch.equal(a, weights(tune(tiny, album, **KW))) and not torch.equal(a, weights(tune(tiny, album, seed=1, **KW)))

def test_global_random_state_is_left_alone(tiny):
    torch.manual_seed(3); before = torch.get_rng_state(); tune(tiny, album, **KW)
    assert torch.equal(before, torch.get_rng_state())

def test_only_below(tiny):
    seen = []
    class Spy(Tuner):
        def batch_at(self, it): out = super().batch_at(it); seen.extend(out[1].tolist()); return out
    Spy(tiny, album, out=None, iters=20, batch=4, lr=1e-3, above=40, below=50).run(progress=False)
    assert len(seen)==80 and 40<=min(seen) and max(seen) < 50
    with pytest.raises(ValueError, match='no noise level of 1000 is from 50 on and below 50'): tune(tiny, album, above=50, below=50, **KW)

def test_plain_loss_as_published(tiny):
    "No weights, no warm-up, no decay, Adam."
    t = Tuner(tiny, album, out=None, iters=10, batch=2, lr=1e-5)
    assert t.weights.eq(1).all() and {t.lr_at(i) for i in range(10)}=={1e-5} and type(t.opt) is torch.optim.Adam and t.opt.defaults['weight_decay']==0
    assert {m.p for m in t.model.modules() if isinstance(m, torch.nn.Dropout)}=={.1}

def test_presets(faces64):
    assert PRESETS['generative']==dict(iters=3000, batch=4, lr=1e-5, dropout=.1) and PRESETS['personal']['iters']==5000
    assert tuning_for(faces64, 'fast')==PRESETS['fast'] | dict(above=16, below=147) and tuning_for(faces64, 'personal')==PRESETS['personal'] and tuning_for(faces64, dict(iters=7))==dict(iters=7)
    assert [preset_for(faces64, n, K) for n,K in (('fast', 147), ('fast', 148), ('fast', 17), ('fast', 16), ('personal', 999), ('personal', 0))]==['fast', 'all-levels', 'fast', 'all-levels', 'personal', 'personal']
    with pytest.raises(ValueError, match="no tuning 'slow'; there are: generative, personal, all-levels, fast"): tuning_for(faces64, 'slow')

def test_resumed(tiny, tmp_path):
    class Stop(Exception): pass
    def stop(trainer, loss):
        if trainer.it==3: trainer.save(); raise Stop
    whole = tune(tiny, album, iters=6, batch=2, lr=1e-3)
    with pytest.raises(Stop): tune(tiny, album, iters=6, batch=2, lr=1e-3, folder=tmp_path, callback=stop)
    went = []
    again = tune(tiny, album, iters=6, batch=2, lr=1e-3, folder=tmp_path, callback=lambda t, l: went.append(t.it))
    assert went==[4,5,6] and torch.allclose(weights(again), weights(whole), atol=1e-6)

def test_another_album_is_another_run(tiny, tmp_path):
    tune(tiny, album, folder=tmp_path, **KW)
    with pytest.raises(ValueError, match='another pictures'): tune(tiny, album.flip(2), folder=tmp_path, **KW)
    with pytest.raises(ValueError, match='another iters'): tune(tiny, album, folder=tmp_path, **KW | dict(iters=2))

@pytest.mark.parametrize('bad,line', [(album*float('nan'), 'not numbers'), (album[0], 'N x 3')])
def test_what_is_no_album(tiny, bad, line):
    with pytest.raises(ValueError, match=line): tune(tiny, bad, **KW)

def test_not_a_number_stops_and_keeps(tiny, tmp_path):
    bad = copy.deepcopy(tiny); calls = []
    def spoil(trainer, loss):
        calls.append(loss); trainer.save()
        if len(calls)==2: trainer.model.input_blocks[0][0].weight.data.fill_(float('nan'))
    with pytest.raises(ValueError, match='no longer a number at iteration 2; what was good is kept') as e: tune(bad, album, folder=tmp_path, callback=spoil, **KW)
    assert len(calls)==2 and all(v.isfinite().all() for v in torch.load(tmp_path/'state.pt', weights_only=True)['model'].values())
    assert weights(e.value.result).isfinite().all() and e.value.result.card['tuned']['iterations']==2

def test_any_size_of_album(tiny):
    assert tune(tiny, resize(astronaut(64), 40), iters=1, batch=1).side==16
    with pytest.raises(ValueError, match='nothing to train'): tune(tiny, album[:0], iters=1)

def test_adapter(tiny, tmp_path):
    thin = tune(tiny, album, lora=2, iters=30, batch=8, lr=5e-3)
    assert error(thin) < .97*error(tiny)
    path = save_person(thin, tmp_path/'her.safetensors')
    again = load_person(path, tiny)
    assert (again(x, 300).eps-thin(x, 300).eps).abs().max() < 5e-3 < (again(x, 300).eps-tiny(x, 300).eps).abs().max()
    other = copy.deepcopy(tiny); other.model.out[2].bias.data += 1
    with pytest.raises(PriorError, match='belongs to tiny'): load_person(path, other)

def test_adapter_is_small(faces64):
    "At most 5 % of the prior at rank 4."
    thin = tune(faces64, astronaut(64), lora=4, iters=1, batch=1)
    assert sum(v.numel() for v in thin.adapter[0].values()) < .05*weights(faces64).numel()

def test_whole_prior_in_a_file(tiny, tmp_path):
    tuned = tune(tiny, album, **KW)
    again = load_person(save_person(tuned, tmp_path/'her.safetensors'), tiny)
    assert (again(x, 300).eps-tuned(x, 300).eps).abs().max() < 2e-2 and again.card['tuned']['iterations']==4

def test_the_finest_levels_stay(tiny):
    "Below `above` it is the prior as it came, from there on the tuned one, in bf16 too."
    pair = tune(tiny, album, above=40, **KW); eps = lambda p, t: p(x, t).eps
    assert isinstance(pair, Experts) and eps(pair, 39).equal(eps(tiny, 39)) and eps(pair, 40).equal(eps(pair.coarse, 40)) and not eps(pair, 40).equal(eps(tiny, 40))
    pair.bf16 = True; assert pair.coarse.bf16 and pair.fine.bf16 and not tiny.bf16
    assert len({p.fingerprint() for p in (pair, pair.coarse, tiny, Experts(pair.coarse, tiny, 41))})==4
    with pytest.raises(ValueError, match='was tuned already'): tune(pair, album, **KW)
    with pytest.raises(ValueError, match='attention is shared in one network'): SharedPrior(pair, album)
    with pytest.raises(ValueError, match='was tuned already'): Restorer(pair, 'generative')            # before an album is drawn
    assert pair.to('meta').fine.device.type=='meta' and tiny.device.type=='cpu'                          # the caller's stays where it was

@pytest.mark.parametrize('lora', [None, 2])
def test_a_pair_in_a_file(tiny, tmp_path, lora):
    pair = tune(tiny, album, above=40, lora=lora, **KW)
    again = load_person(save_person(pair, tmp_path/'her.safetensors'), tiny)
    assert again.above==40 and again(x, 39).eps.equal(tiny(x, 39).eps) and (again(x, 300).eps-pair(x, 300).eps).abs().max() < 2e-2
    other = copy.deepcopy(tiny); other.model.out[2].bias.data += 1
    with pytest.raises(PriorError, match='belongs to tiny'): load_person(tmp_path/'her.safetensors', other)
    if not lora:
        with pytest.raises(PriorError, match='tuned for some noise levels only; load_person'): load_prior(tmp_path/'her.safetensors')

def test_one_line(tiny, tmp_path):
    with pytest.raises(ValueError, match='ends in .safetensors'): save_person(tiny, tmp_path/'her.pt')
    (tmp_path/'her.safetensors').write_bytes(b'nonsense')
    with pytest.raises(PriorError, match="not a person's file"): load_person(tmp_path/'her.safetensors', tiny)
    with pytest.raises(PriorError, match="no such file"): load_person(tmp_path/'none.safetensors', tiny)

def test_binned(): assert binned([1.,2.,3.,4.], 2)==[1.5,3.5] and binned([1.], 40)==[1.]

@pytest.mark.parametrize('option', [dict(amp=True), dict(ema=.9), dict(flips=True), dict(below=50), dict(above=50), dict(decay=.7), dict(dropout=0.)])
def test_every_option_does_something(tiny, monkeypatch, option):
    monkeypatch.setattr('gen2res.prior.quick_bf16', lambda device: True)                 # emulated, if need be
    lopsided = album[:1]; plain,other = (weights(tune(tiny, lopsided, **KW, **o)) for o in ({}, option))
    assert not torch.equal(plain, other) and (plain-other).abs().max() < .05

def test_losses_survive_a_kill(tiny, tmp_path):
    from gen2res.tune import Tuner
    album = torch.rand(2,3,16,16)*2-1; kw = dict(iters=4, batch=1, lr=1e-4)
    def killed(t, loss):
        if t.it==2: t.save(); raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): tune(tiny, album, **kw, folder=tmp_path, callback=killed)
    assert len(Tuner(tiny, album, out=tmp_path, flips=False, amp=False, **kw).losses)==2
    assert tune(tiny, album, **kw, folder=tmp_path).card['tuned']['loss']==tune(tiny, album, **kw).card['tuned']['loss']
