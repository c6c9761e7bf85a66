"Restorers: any architecture in and out, the losses, and tuning."
import copy, inspect, math, shutil
import pytest, torch
from safetensors.torch import load_file, save_file
from torch import nn
from gen2res.images import ImageError, resize, save_image
from gen2res.prior import PriorError, shipped
from gen2res.pseudo import make_targets
from gen2res.restorers import (RESTORER_PRESETS, CodeLosses, Discriminator, ImageLosses, RestorationModel, RestorerTuner, _card, adapt, codes, damaging, from_pairs, load_restorer,
                               log_one_minus_D, minus_log_D, save_restorer, small_swinir, tune_restorer)
from gen2res.tune import to_u8

def pictures(n=4, side=64, seed=0): return torch.rand(n,3,side,side, generator=torch.Generator().manual_seed(seed))*2-1
def little(side=64): torch.manual_seed(0); return small_swinir(side, fold=2 if side<64 else 4, width=12, depths=(2,), heads=2)

def test_without_settings_a_tuning_is_the_papers():
    of = inspect.signature(RestorerTuner.__init__).parameters; paper = RESTORER_PRESETS['paper']
    assert all(of[k].default==paper[k] for k in ('iters','batch','lr','cosine','decay'))

def test_the_one_that_comes_along_is_small():
    assert (shipped('swinir64')/'model.safetensors').stat().st_size < 8e6 and load_restorer('swinir64', 'cpu').card

def test_what_is_not_free_says_so(codeformer):
    assert 'not for commercial use' in load_restorer(codeformer, 'cpu').card['licence'] and 'licence' not in load_restorer('identity').card

# -- in and out -------------------------------------------------------------

@pytest.mark.parametrize('dtype,gap', [(torch.float32, 0), (torch.float16, 5e-3)])
def test_saved_and_read_again(tmp_path, dtype, gap):
    r = little(); again = load_restorer(save_restorer(r, tmp_path/'r.safetensors', dtype), device='cpu'); y = pictures(2)
    assert (again(y)-r(y)).abs().max() <= gap and again.arch=='SwinIR' and again.multiple==32 and again(y[..., :50, :40]).shape==(2,3,50,40) and again.scale==1 and again.side==64

def test_spandrel_itself_reads_it(tmp_path):
    from spandrel import ModelLoader
    r = little(); d = ModelLoader(device='cpu').load_from_file(save_restorer(r, tmp_path/'r.safetensors')); y = pictures(1)
    assert torch.allclose(d((y+1)/2)*2-1, r(y), atol=1e-6)

def test_the_swinir_of_dt_bfr(tmp_path):
    "8 x 8 pixels folded, 8 groups of 6, 180 wide, nearest+conv: as spandrel finds it in a checkpoint with the authors' key names."
    from spandrel.architectures.SwinIR import SwinIR
    net = SwinIR(img_size=64, embed_dim=180, depths=[6]*8, num_heads=[6]*8, window_size=8, mlp_ratio=2., upscale=8, upsampler='nearest+conv', start_unshuffle=8)
    state = {k.replace('conv_first.', 'conv_first.1.') if k.startswith('conv_first') else k: v for k,v in net.state_dict().items()}
    torch.save({'params_ema': state}, tmp_path/'dtbfr.pth')
    r = load_restorer(tmp_path/'dtbfr.pth', device='cpu'); y = pictures(1, 128)
    with torch.no_grad(): want = net.eval()((y+1)/2)*2-1
    assert torch.allclose(r(y), want.clamp(-1, 1), atol=1e-5) and r.scale==1 and sum(p.numel() for p in r.model.parameters()) > 15e6

def test_other_architectures(tmp_path):
    from spandrel.architectures.NAFNet import NAFNet
    net = NAFNet(img_channel=3, width=8, middle_blk_num=1, enc_blk_nums=[1,1], dec_blk_nums=[1,1])
    torch.save(net.state_dict(), tmp_path/'n.pth'); r = load_restorer(tmp_path/'n.pth', device='cpu'); y = pictures(1, 40)[..., :37]
    assert r.arch=='NAFNet' and r(y).shape==y.shape
    tuned = tune_restorer(r, to_u8(pictures(4)), to_u8(pictures(4)), iters=2, batch=2, losses=dict(gan=0, perceptual=0))
    assert load_restorer(save_restorer(tuned, tmp_path/'m.safetensors'), device='cpu').arch=='NAFNet'

@pytest.mark.parametrize('h,w', [(64,64), (50,40), (16,100), (1,1)])
def test_any_size(h, w):
    y = torch.rand(1,3,h,w)*2-1; x = little()(y)
    assert x.shape==y.shape and x.abs().max() <= 1

def test_in_batches_it_is_the_same(): assert torch.allclose(little()(pictures(5), batch=2), little()(pictures(5)), atol=1e-6)

def test_formulas():
    y = pictures(1, 16)
    assert torch.equal(load_restorer('identity')(y), y) and load_restorer('bicubic', scale=4)(y).shape==(1,3,64,64)

def test_ranges(): # a network that doubles: in [-1, 1] and in [0, 1] that is not the same
    double = nn.Module(); double.forward = lambda x, **kw: x*2
    y = torch.full((1,3,8,8), .25)
    assert RestorationModel(double, arch='GFPGAN')(y).mean()==.5 and RestorationModel(double, arch='SwinIR')(y).mean()==1

@pytest.mark.parametrize('make,say', [(lambda p: p/'none.pth', 'no such restorer'), (lambda p: (p/'a.safetensors').write_bytes(b'x') and p/'a.safetensors', 'not a readable checkpoint'),
                                      (lambda p: (torch.save({'w': torch.zeros(3)}, p/'b.pth'), p/'b.pth')[1], 'of no architecture'),
                                      (lambda p: (torch.save(nn.Linear(1,1), p/'c.pth'), p/'c.pth')[1], 'could run code')])
def test_bad_files(tmp_path, make, say):
    with pytest.raises(PriorError, match=say): load_restorer(make(tmp_path))

def test_bad_arguments(tmp_path):
    save_restorer(little(), tmp_path/'r.safetensors')
    with pytest.raises(ValueError, match='fidelity is a number of CodeFormer'): load_restorer(tmp_path/'r.safetensors', fidelity=.7)
    with pytest.raises(ValueError, match='ends in .safetensors'): save_restorer(little(), tmp_path/'r.pth')

# -- losses -----------------------------------------------------------------

def test_gan_losses_are_logarithms():
    z = torch.linspace(-5, 5, 7); p = z.sigmoid()
    assert torch.allclose(log_one_minus_D(z), (1-p).log().mean()) and torch.allclose(minus_log_D(z), -p.log().mean())

def test_discriminator_learns_to_tell():
    torch.manual_seed(0)
    L = ImageLosses('cpu', 1e-3); real,made = pictures(4, 32)*.2+.5,pictures(4, 32, 1)*.2-.5
    first = [L.after(made, real, 1e-3)['D'] for _ in range(20)]
    assert first[-1] < first[0]-.2 and abs(first[0]-2*math.log(2)) < .3
    assert L.D(real).mean() > L.D(made).mean()

def test_spectral_norm_bounds_every_inner_layer():
    D = Discriminator(8); [D(pictures(2, 32)) for _ in range(30)]
    for layer in [*D.down, *D.up]: assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2) < 1.05

@pytest.mark.parametrize('weights,names', [(dict(), {'l1','pd64','gan'}), (dict(gan=0), {'l1','pd64'}), (dict(perceptual=0), {'l1','gan'}), (dict(perceptual=0, gan=0), {'l1'})])
def test_total_is_the_weighted_sum(weights, names):
    r = little(); L = ImageLosses('cpu', 1e-3, **weights); y,x = pictures(2),pictures(2, seed=1)
    total,terms,out = L(r, y, x)
    assert set(terms)==names and torch.allclose(total, sum(terms.values())) and torch.allclose(terms['l1'], (out-x).abs().mean()) and bool(L.parts())==('gan' in names)
    if 'pd64' in names:
        from gen2res.metrics import metric
        assert abs(terms['pd64'].item()-.1*metric('pd64').f(out, x).mean().item()) < 1e-5

def test_saturating_is_eq_6_as_printed():
    r = little(); y,x = pictures(2),pictures(2, seed=1)
    for saturating,f in ((True, log_one_minus_D), (False, minus_log_D)):
        torch.manual_seed(0); L = ImageLosses('cpu', 1e-3, saturating=saturating); L.D.eval()
        _,terms,out = L(r, y, x)
        assert torch.allclose(terms['gan'], .1*f(L.D(out)), atol=1e-4)

# -- tuning -----------------------------------------------------------------

def data(n=6): y = pictures(n); return to_u8(y),to_u8((y*.5+.2).clamp(-1, 1))
QUICK = dict(batch=2, lr=1e-3, losses=dict(gan=0, perceptual=0), ema=0.)

def test_learns_and_leaves_the_given_one_alone():
    r,(y,x) = little(),data(); before = copy.deepcopy(r.model.state_dict())
    tuned = tune_restorer(r, y, x, iters=30, **QUICK)
    gap = lambda m: (m(y/127.5-1)-(x/127.5-1)).abs().mean()
    assert gap(tuned) < .7*gap(r) and all(torch.equal(a, b) for a,b in zip(before.values(), r.model.state_dict().values()))

def test_pairs_are_damaged_anew_each_by_its_own_draw():
    good = to_u8(pictures(1)).expand(3, -1, -1, -1); pairs = damaging(good, 'camera:severe'); g = lambda s: torch.Generator().manual_seed(s)
    (y,x),(again,_),(other,_) = (pairs(g(s), 2) for s in (0, 0, 1))
    assert y.equal(again) and not y.equal(other) and not y[0].equal(y[1]) and x[0].equal(x[1]) and to_u8(x[:1]).equal(good[:1])

def test_no_block_is_left_out_by_chance(tmp_path):
    "Read from a file, spandrel's SwinIR would leave some out in training."
    r = load_restorer(save_restorer(little(), tmp_path/'r.safetensors'), 'cpu'); u8 = torch.zeros(2,3,64,64, dtype=torch.uint8)
    rates = lambda **kw: {m.drop_prob for m in RestorerTuner(r, from_pairs(u8, u8), iters=1, batch=2, losses=dict(gan=0.), **kw).model.modules() if hasattr(m, 'drop_prob')}
    assert rates()=={0.} and max(rates(drop_path=True))>0

def test_the_same_seed_whatever_was_loaded_before():
    from gen2res.embedder import load_embedder
    from gen2res.metrics import metric
    r,(y,x) = little(),data(); kw = dict(iters=1, batch=2, lr=1e-3, real=to_u8(pictures(4, seed=9))); seen = []
    metric.cache_clear(); load_embedder.cache_clear()
    for _ in range(2): tune_restorer(r, y, x, callback=lambda run, loss: seen.append(loss), **kw)
    assert seen[0]==seen[1]

def test_killed_and_resumed_is_the_same(tmp_path):
    r,(y,x) = little(),data(); kw = dict(iters=6, batch=2, lr=1e-3, real=to_u8(pictures(4, seed=9)))
    whole = tune_restorer(r, y, x, **kw)
    def killed(run, loss):
        if run.it==3: run.save(); raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): tune_restorer(r, y, x, out=tmp_path, callback=killed, **kw)
    again = tune_restorer(r, y, x, out=tmp_path, **kw)
    assert all(torch.allclose(a, b, atol=1e-6) for a,b in zip(whole.model.state_dict().values(), again.model.state_dict().values()))
    assert load_restorer(tmp_path/'restorer.safetensors', device='cpu').arch=='SwinIR'
    with pytest.raises(ValueError, match='another lr'): tune_restorer(r, y, x, out=tmp_path, **(kw|dict(lr=2e-3)))

def test_logs_and_previews(tmp_path):
    import json
    r,(y,x) = little(),data()
    RestorerTuner(r, from_pairs(y, x), to_u8(pictures(4)), tmp_path, iters=4, batch=2, val=(pictures(2), pictures(2)), log_every=3, val_every=2, sample_every=4).run(False)
    rows = [json.loads(l) for l in (tmp_path/'log.jsonl').read_text().splitlines()]
    assert [r['it'] for r in rows]==[2, 3, 4] and all({'l1 loss','pd64 loss','gan loss','D loss'} <= set(r) for r in rows) and 'psnr' in rows[0]['val'] and 'val' not in rows[1] and (tmp_path/'preview_000004.png').exists()

def test_presets_fall_as_they_say():
    lrs = {k: [RestorerTuner(little(), None, losses=dict(gan=0, perceptual=0), **v).lr_at(i) for i in (0, 10_000, 20_000)] for k,v in RESTORER_PRESETS.items()}
    assert lrs['paper']==pytest.approx([1e-4, 5e-5, 0]) and lrs['released']==pytest.approx([2e-5, 1.25e-5, 5e-6])

def test_refusals(tmp_path):
    r,(y,x) = little(),data()
    with pytest.raises(ValueError, match='give `real`'): tune_restorer(r, y, x, iters=1)
    with pytest.raises(ValueError, match='do not make pairs'): tune_restorer(r, y, x[:2], iters=1, **QUICK)
    for d in ('a', 'b'): save_image(pictures(1), tmp_path/d/f'{d}.png')
    with pytest.raises(ImageError, match='no picture named like'): tune_restorer(r, tmp_path/'a', tmp_path/'b', iters=1, **QUICK)
    with torch.no_grad(): r.model.conv_last.weight.fill_(float('nan'))
    with pytest.raises(ValueError, match='no longer a number'): tune_restorer(r, y, x, iters=1, **QUICK)

def test_the_whole_pipeline(tiny, tmp_path):
    for i,im in enumerate(pictures(3, 16).split(1)): save_image(im, tmp_path/'lq'/f'{i}.png')
    r = little(16); kw = dict(K=20, steps=4, iters=2, **QUICK)
    tuned = adapt(r, tmp_path/'lq', tiny, tmp_path/'work', **kw)
    card = _card(tmp_path/'work'/'run'/'restorer.safetensors')
    assert card['side']==16 and card['tuned']['iterations']==2 and card['tuned']['losses']['by']=='pd64' and 'name' not in card
    assert len(list((tmp_path/'work'/'targets').glob('*.png')))==3
    assert torch.equal(adapt(r, tmp_path/'lq', tiny, tmp_path/'work', **kw)(pictures(1, 16)), tuned(pictures(1, 16)))

def test_a_broken_photo_costs_a_line(tiny, tmp_path):
    "One that never could be read, one beside another of its name, one that broke after its target was made."
    for i,im in enumerate(pictures(3, 16).split(1)): save_image(im, tmp_path/'lq'/f'{i}.png')
    for name in ('0.jpg', '9.png'): (tmp_path/'lq'/name).write_bytes(b'')
    r = little(16); kw = dict(K=20, steps=4, iters=1, **QUICK); said = []
    run = lambda work: adapt(r, tmp_path/'lq', tiny, tmp_path/work, report=said.append, **kw)
    run('a'); assert len(said)==2 and '0.jpg' in said[0] and '9.png' in said[1]
    (tmp_path/'lq'/'1.png').write_bytes(b''); shutil.copytree(tmp_path/'a'/'targets', tmp_path/'b'/'targets')
    run('b'); assert len(said)==5 and '1.png' in said[3]

@pytest.mark.parametrize('wrong,say', [(dict(lr=-1.), 'learning rate'), (dict(losses=dict(gan=0, by='psnr')), 'pd64 or lpips'), (dict(losses=dict(gan=0, by='nonsense')), 'pd64 or lpips'), (dict(losses={}), 'give `real`')])
def test_mistakes_are_told_before_the_long_work(tiny, tmp_path, wrong, say):
    save_image(pictures(1, 16), tmp_path/'lq'/'0.png')
    with pytest.raises(ValueError, match=say): adapt(little(16), tmp_path/'lq', tiny, tmp_path/'work', **(dict(K=20, steps=4, iters=1) | QUICK | wrong))
    assert not (tmp_path/'work').exists()

def test_other_data_is_another_run(tmp_path):
    r,(y,x) = little(),data(); tune_restorer(r, y, x, out=tmp_path, iters=1, **QUICK)
    for change in (lambda: tune_restorer(r, y.flip(0)+1, x, out=tmp_path, iters=1, **QUICK), lambda: tune_restorer(r, y, x+1, out=tmp_path, iters=1, **QUICK)):
        with pytest.raises(ValueError, match='another data'): change()
    other = little()
    with torch.no_grad(): other.model.conv_last.bias.add_(1)
    with pytest.raises(ValueError, match='another restorer'): tune_restorer(other, y, x, out=tmp_path, iters=1, **QUICK)

def test_a_line_cut_off_in_the_log_does_not_stop_a_resume(tmp_path):
    r,(y,x) = little(),data(); kw = dict(out=tmp_path, iters=2, log_every=1, **QUICK)
    tune_restorer(r, y, x, **kw)
    with open(tmp_path/'log.jsonl', 'a') as f: f.write('{"it": 1, "lo')
    tune_restorer(r, y, x, **kw)
    assert len((tmp_path/'log.jsonl').read_text().splitlines())==2

def test_what_cannot_be_trained_or_adapted(tiny, tmp_path):
    y,x = data()
    with pytest.raises(ValueError, match='no weights'): tune_restorer(load_restorer('identity'), y, x, iters=1, **QUICK)
    with pytest.raises(ValueError, match='must keep the size'): tune_restorer(load_restorer('bicubic', scale=2), y, x, iters=1, **QUICK)
    save_image(pictures(1), tmp_path/'a'/'a.png'); r = little(); r.least = 512
    with pytest.raises(ValueError, match='choose a prior of that side'): adapt(r, tmp_path/'a', tiny, tmp_path/'w')
    assert not (tmp_path/'w').exists()

def test_a_face_fills_a_network_of_fixed_size():
    seen = []
    net = nn.Module(); net.forward = lambda x, **kw: seen.append(x.shape) or x
    r = RestorationModel(net, arch='GFPGAN', multiple=8, least=128, square=True); y = torch.full((1,3,32,24), .3)
    assert torch.allclose(r(y), y, atol=1e-5) and torch.allclose(r(y.expand(1,3,32,24).repeat(1,1,8,8)), y.repeat(1,1,8,8), atol=1e-5) and seen==[(1,3,128,128)]*2   # larger ones are shrunk for it

def test_pairs_by_name_and_clean_pictures_cut_like_their_photos(tmp_path):
    from skimage import data as pictures_of
    from gen2res.images import to_tensor
    from gen2res.restorers import _pairs
    astro = resize(to_tensor(pictures_of.astronaut()/255), 256)
    save_image(astro, tmp_path/'clean'/'a.png'); save_image(pictures(1), tmp_path/'odd'/'a.png')
    y,x = _pairs(tmp_path/'clean', tmp_path/'clean', 64)
    assert torch.equal(y, x) and len(y)==1                              # a photo and itself: the same square of both
    with pytest.raises(ImageError, match='its photo'): _pairs(tmp_path/'clean', tmp_path/'odd', 64)

# -- CodeFormer ---------------------------------------------------------------

def test_codeformer(codeformer, tmp_path):
    r = load_restorer(codeformer, device='cpu'); y = pictures(1, 512)
    assert r.arch=='CodeFormer' and r.fidelity==.5 and r.square and r.multiple==512
    with torch.no_grad(): out,logits = r.model(y, weight=.5)
    assert torch.equal(r(y), out.clamp(-1, 1)) and torch.allclose(codes(r.model, y)[0], logits, atol=1e-5)
    seen = []
    r.model.forward = lambda x, weight: seen.append(weight) or (x, None)
    r.fidelity = .8; r(y); assert seen==[.8]

TRANSFORMER = {'position_emb','feat_emb','ft_layers','idx_pred_layer'}

@pytest.mark.parametrize('side,losses,moved', [(512, {}, {'encoder'}|TRANSFORMER), (64, dict(tuned=['encoder','cft']), {'encoder','fuse_convs_dict'})])
def test_codeformer_is_tuned_in_part(codeformer, side, losses, moved):
    r = load_restorer(codeformer, device='cpu'); y = to_u8(pictures(1, side))
    tuned = tune_restorer(r, y, y, real=y, side=side, iters=1, batch=1, lr=1e-2, ema=0., losses=losses, amp=side<512)
    assert {k.split('.')[0] for (k,a),b in zip(r.model.state_dict().items(), tuned.model.state_dict().values()) if not torch.equal(a, b)}==moved

@torch.no_grad()
def test_code_losses(codeformer):
    r = load_restorer(codeformer, device='cpu'); y,x = pictures(1),pictures(1, seed=1)
    L = CodeLosses('cpu', 1e-3, r.model); words,q = L.words(r.fitted(x)[0])
    total,terms,out = L(r, y, x)
    logits,z = codes(r.model, r.fitted(y)[0])
    assert out is None and set(terms)=={'feat','token'} and torch.allclose(terms['feat'], (z-q).pow(2).mean()) and torch.allclose(total, sum(terms.values()))
    assert torch.allclose(terms['token'], -.5*logits.log_softmax(-1).gather(-1, words[..., None]).mean(), atol=1e-5)
    total,terms,out = CodeLosses('cpu', 1e-3, r.model, tuned=['cft'], gan=0)(r, y, x)
    assert set(terms)=={'feat','token','l1','pd64'} and out.shape==y.shape and torch.allclose(terms['l1'], (out-x).abs().mean()) and torch.allclose(total, sum(terms.values()))
    with pytest.raises(ValueError, match='tuned in encoder, transformer, cft; got decoder'): CodeLosses('cpu', 1e-3, r.model, tuned=['decoder'])
    with pytest.raises(ValueError, match='give `real`'): tune_restorer(r, to_u8(y), to_u8(x), iters=1, losses=dict(tuned=['cft']))
    other = CodeLosses('cpu', 1e-3, r.model); next(other.encoder.parameters()).add_(1); assert other.fixed()['teacher']!=L.fixed()['teacher']
    assert words.shape==(1,256) and torch.allclose(r.model.quantize.get_codebook_feat(words.flatten(), [1,16,16,256]), q, atol=1e-5)
