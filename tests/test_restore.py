"Recipes, restorers with albums, several samples, and records that are enough to make a picture again."
import copy, json, warnings
import pytest, torch
from gen2res.untuned import AlbumMean
from PIL import Image
from skimage import data
from gen2res.degrade import degrade
from gen2res.constraints import Guide, LowFreq, PartialGuide
from gen2res.faces import Face
from gen2res.prior import Prior
from gen2res.images import ImageError, astronaut, load_image, resize, save_image, to_array, to_pil, to_tensor, to_unit_rgb
from gen2res.restore import (ALBUMS, AUTO, RECIPES, Restorer, again, damaged_astronaut, most_faithful, read_record, recipe_arguments, record, restore,
                             restore_example, restore_file, restore_files, restore_photo, restorer_of, spread, spread_map, suggested_K)
from gen2res.restorers import OnePass, load_restorer
from gen2res.sample import ddim
from gen2res.schedule import equivalent_K
from gen2res.tune import PRESETS, tune

y = resize(damaged_astronaut()[0], 16)
QUICK = dict(iters=3, batch=2, lr=1e-3)

@pytest.mark.parametrize('name', [n for n in RECIPES if n not in ALBUMS])
def test_every_recipe_runs(tiny, name):
    x = Restorer(tiny, name, K=40, steps=None)(y, seeds=[3])
    assert x.shape==y.shape and x.isfinite().all() and x.abs().max() <= 1
    assert torch.equal(x, Restorer(tiny, name, K=40)(y, seeds=[3]))

def test_numbers_are_converted(faces64):
    y = astronaut(64); a = lambda n: recipe_arguments(n, y, faces64)
    assert a('plain')['K']==equivalent_K(200, 256, 64)==52 and a('pseudo')['K']==equivalent_K(600, 512, 64) and a('ilvr')['K']==1000
    [low] = a('pseudo')['constraints']
    assert low.lo==equivalent_K(360, 512, 64) and low.phi.keywords['N']==2
    assert isinstance(a('dda')['constraints'][0], Guide) and isinstance(a('pgdiff')['constraints'][0], PartialGuide) and isinstance(a('ilvr')['constraints'][0], LowFreq)
    assert a('dr2')['tau']==equivalent_K(300, 512, 64) and recipe_arguments('pseudo', y, faces64, 99)['K']==99
    assert [recipe_arguments('ilvr', y, faces64, N=n)['constraints'][0].phi.keywords['N'] for n in (None, 16)]==[4, 16]

def test_unknown_recipe(tiny):
    with pytest.raises(ValueError, match='unknown recipe .nope.; there are: plain'): Restorer(tiny, 'nope')
    with pytest.raises(ValueError, match='needs an album'): Restorer(tiny, 'personal')

def test_stops_at_tau(tiny):
    seen = []
    x = restore(y, tiny, K=30, tau=12, callback=lambda st: seen.append(st))
    assert [st.t for st in seen]==list(range(29, 11, -1)) and torch.equal(x, seen[-1].x0.clamp(-1, 1))

def test_plain_restorer_is_restore(tiny): assert torch.equal(Restorer(tiny, K=20)(y, seeds=7), restore(y, tiny, 20, seeds=7))

LIGHT,HEAVY = (degrade(astronaut(64), 'jpeg', seeds=0, q=q) for q in (60, 5))

def test_each_photo_has_the_K_that_it_needs(faces64):
    r,both = Restorer(faces64, K=AUTO, steps=8),torch.cat([LIGHT, HEAVY])
    x = r(both, seeds=[3, 4]); Ks = [min(52, *suggested_K(im, faces64, [s], steps=8)) for im,s in zip(both.split(1), (3, 4))]
    assert 10 < Ks[0] < Ks[1] <= 52 and r.chosen==Ks[1] and r.title==f'restored, K = {Ks[1]}' and r.settings()['K']=='auto'
    for i,K in enumerate(Ks): assert torch.equal(x[i:i+1], restore(both[i:i+1], faces64, K, 8, seeds=[3+i]))
    several = r(LIGHT, 3, samples=2)
    assert r.chosen==Ks[0] and (several-restore(LIGHT.expand(2, -1, -1, -1), faces64, Ks[0], 8, seeds=[3, 4])).abs().max() < 1e-5
    few = Restorer(faces64, K=AUTO, steps=45); few.known = [9]
    assert few(LIGHT, [3]).isfinite().all() and few.chosen==9                      # a walk of fewer steps than were asked for

def test_a_chosen_K_is_on_the_sheet_and_in_the_record(faces64, tmp_path):
    photo,faces = to_pil(torch.cat([LIGHT, HEAVY], -1)),[Face(0, 0, 64), Face(64, 0, 64)]
    kw = dict(out=tmp_path, seed=3)
    restore_photo(photo, Restorer(faces64, K=AUTO, steps=8), 'two', faces=faces, how='face', **kw)
    about = read_record(tmp_path/'two_restored.png')
    assert about['K']=='auto' and len(about['chosen'])==2 and about['chosen'][0] < about['chosen'][1]
    save_image(LIGHT, tmp_path/'one.png'); restore_file(tmp_path/'one.png', Restorer(faces64, K=AUTO, steps=8), square=True, **kw)
    about = read_record(tmp_path/'one_restored.png')
    assert about['chosen']==[min(52, *suggested_K(load_image(tmp_path/'one.png'), faces64, 3, steps=8))]
    assert to_tensor(to_unit_rgb(again(about, tmp_path/'one.png', faces64))).equal(load_image(tmp_path/'one_restored.png'))

def test_a_result_is_made_again_from_the_K_that_was_chosen(faces64, monkeypatch):
    monkeypatch.setattr('gen2res.restore.suggest_K', lambda *a, **kw: pytest.fail('judged anew'))
    about = json.loads(record(Restorer(faces64, K=AUTO, steps=4).settings(), 3, chosen=[36])['gen2res'])
    assert again(about, LIGHT, faces64).size==(64, 64)
    r = Restorer(faces64, K=AUTO, steps=4); r.known = [20, 30]
    assert torch.equal(r(torch.cat([LIGHT, LIGHT]), [3, 3])[1:], restore(LIGHT, faces64, 30, 4, seeds=[3])) and r.chosen==30

def test_nothing_is_tuned_for_a_photo_that_the_tuning_would_not_touch(faces64, monkeypatch):
    monkeypatch.setattr('gen2res.restore.suggest_K', lambda *a: [10])
    monkeypatch.setattr('gen2res.restore.generative_album', lambda *a, **kw: pytest.fail('an album for nothing'))
    r = Restorer(faces64, 'generative', K=AUTO, steps=5)
    assert r.tuning['above'] > 10 and torch.equal(r(LIGHT, [3]), restore(LIGHT, faces64, 10, 5, seeds=[3]))

def test_judging_takes_the_steps_that_were_asked_for_and_can_be_watched(faces64):
    seen = []
    Restorer(faces64, K=AUTO, steps=4, watch=lambda stage, done, of: seen.append((stage, done, of)))(LIGHT, [3])
    assert seen==[(s, i+1, 4) for s in ('judging the damage', 'restoring') for i in range(4)]

def test_the_most_that_is_chosen_for_a_person(tiny):
    her = tune(tiny, y, **QUICK); personal = recipe_arguments('personal', y, tiny)['K']
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert Restorer(her, K=AUTO).top==personal < Restorer(tiny, K=AUTO).top
        her.card['tuned']['below'] = 2; assert Restorer(her, K=AUTO).top==2

def test_whose_K_is_not_chosen(tiny):
    with pytest.raises(ValueError, match="K must be a number or 'auto', got '52'"): Restorer(tiny, K='52')
    codes = copy.copy(tiny); codes.latent = True
    with pytest.raises(ValueError, match='tiny is a prior of codes'): Restorer(codes, K=AUTO)
    with pytest.raises(ValueError, match="K = 'auto' is for plain, generative, personal, closed-form; ilvr has"): Restorer(tiny, 'ilvr', K=AUTO)
    with pytest.raises(ValueError, match="must be a plain number, not '5,10'"): Restorer(tiny, K=AUTO, steps='5,10')
    her = Restorer(tiny, 'personal', K=AUTO, album=torch.cat([y, y.flip(-1)]), tuning=QUICK)
    her(torch.cat([y, -y]), 3); assert her.prior_for(y) is her.person and her.chosen<=her.top==recipe_arguments('personal', y, tiny)['K']

def test_generative(tiny):
    r = Restorer(tiny, 'generative', K=20, n=2, album_steps=8, every=2, tuning=QUICK); before = tiny.fingerprint()
    x = r(torch.cat([y, -y]), seeds=[1,2])
    assert tiny.fingerprint()==before and (x[:1]-r(y, seeds=[1])).abs().max() < 1e-4      # one photo's album is its own
    assert not torch.equal(r(y, seeds=[1]), restore(y, tiny, 20, seeds=[1]))

def test_personal_tunes_once(tiny):
    r = Restorer(tiny, 'personal', K=20, album=torch.cat([y, y.flip(-1)]), tuning=QUICK)
    assert r.person is None and r.prior_for(y) is r.prior_for(-y) is r.person and len(r.settings()['album'])==12
    x = r(y, 3)
    about = json.loads(record(r.settings(), 3)['gen2res'])
    assert torch.equal(restorer_of(about, tiny, torch.cat([y, y.flip(-1)]))(y, 3), x)
    with pytest.raises(ValueError, match='another album'): restorer_of(about, tiny, y)

def test_closed_form_uses_the_album_as_it_is(tiny):
    album = torch.cat([y.flip(-1), -y]); r = Restorer(tiny, 'closed-form', K=200, steps=5, album=album)
    x = r(torch.cat([y, -y]), seeds=[3, 4])
    assert torch.allclose(x[:1], restore(y, tiny, 200, 5, [AlbumMean(album)], seeds=[3]), atol=1e-5) and not torch.allclose(x[:1], restore(y, tiny, 200, 5, seeds=[3]), atol=1e-3)
    about = json.loads(record(r.settings(), 3)['gen2res'])
    assert 'tuning' not in about and torch.allclose(restorer_of(about, tiny, album)(y, 3), x[:1], atol=1e-5) and r.prior_for(y) is tiny
    for wrong in (None, y):
        with pytest.raises(ValueError, match='another album'): restorer_of(about, tiny, wrong)
    with pytest.raises(ValueError, match="closed-form. needs an album"): Restorer(tiny, 'closed-form')

def test_complains_before_any_tuning(tiny):
    for steps in ('abc', '100'):
        with pytest.raises(ValueError): Restorer(tiny, 'personal', K=20, steps=steps, album=y, tuning=dict(iters=10**9))
    with pytest.raises(ValueError, match='stops at tau = 12'): restore(y, tiny, K=10, tau=12)

def test_samples(tiny):
    r = Restorer(tiny, K=60)
    xs = r(y, seeds=4, samples=3)
    assert xs.shape==(3,3,16,16) and (xs[2:]-r(y, seeds=[6])).abs().max() < 1e-5 and spread(xs).shape==(16,16) and spread(xs).max() > 0
    assert spread_map(xs).size==(16,16)

def test_the_fast_preset_is_of_the_album_too(tiny, faces64):
    made = lambda prior, **kw: Restorer(prior, 'generative', **kw).made
    assert made(faces64)['steps']==43 and made(faces64)['every']==2 and made(faces64, tuning='all-levels')==made(faces64, K=148) and made(faces64, K=148)['steps']==86 and made(faces64, tuning='generative')['steps'] is None and made(faces64, tuning='generative')['every']==20 and made(faces64, tuning='generative', album_steps=40)['every']==2
    assert (made(faces64)['n'], made(faces64, tuning='generative')['n'], made(faces64, n=3)['n'])==(8, 16, 3)
    assert made(faces64, every=0)['every']==0 and made(faces64, album_steps=40)['steps']==40 and made(tiny)['steps']<=made(tiny)['K']
    r = Restorer(faces64, 'generative'); about = json.loads(record(r.settings())['gen2res'])
    assert restorer_of(about, faces64).settings()==r.settings()                  # by name or spelled out, the same

def test_fast_learns_the_noise_that_is_visited(tiny, faces64):
    tuned = lambda **kw: Restorer(faces64, 'generative', **kw).tuning
    assert tuned()['below']==147 and tuned(K=147)['below']==147 and 'below' not in tuned(K=148)
    assert Restorer(faces64, 'personal', album=y).tuning['iters']==PRESETS['all-levels']['iters']
    her = tune(tiny, y, **QUICK, below=30)
    with warnings.catch_warnings(): warnings.simplefilter('error'); Restorer(her, K=30)
    with pytest.warns(UserWarning, match='was tuned for K up to 30, and from 31'): Restorer(her, K=31)

def test_most_faithful(): assert most_faithful(torch.cat([-y, y.flip(-1), .9*y]), y)==2

def test_record_makes_it_again(tiny, tmp_path):
    for kw in (dict(), dict(recipe='ilvr'), dict(recipe='generative', n=2, album_K=30, album_steps=8, every=2, tuning=QUICK | dict(above=5), seed=5)):
        r = Restorer(tiny, K=20, **kw)
        x = r(y, 9, 1)
        save_image(x, tmp_path/'x.png', record(r.settings(), 9), overwrite=True)
        rec = read_record(tmp_path/'x.png'); assert to_tensor(to_unit_rgb(again(rec, y, tiny))).equal(load_image(tmp_path/'x.png'))
        assert (to_array(restorer_of(rec, tiny)(y, rec['seed'], rec['samples']))==to_array(load_image(tmp_path/'x.png'))).all()

@pytest.mark.parametrize('how', [dict(), dict(square=True)])
def test_a_file_again_of_several_samples(tiny, tmp_path, how):
    save_image(astronaut(), tmp_path/'her.png')
    made,_ = restore_file(tmp_path/'her.png', Restorer(tiny, K=20), tmp_path/'out', seed=3, samples=3, **how)
    once_more = again(read_record(made), tmp_path/'her.png', tiny)
    assert to_tensor(to_unit_rgb(once_more)).equal(load_image(made)) and ('faces' in read_record(made))==(not how)

@pytest.mark.parametrize('how', [dict(), dict(which='largest'), dict(which='centre'), dict(which='0')])
def test_a_photo_smaller_than_the_restorer_sees_comes_back_whole(tmp_path, how):
    a = resize(to_tensor(data.astronaut()/255), 200); save_image(torch.cat([a, a.flip(-1)], -1), tmp_path/'two.png')
    result,_ = restore_file(tmp_path/'two.png', OnePass(load_restorer('identity'), 512), tmp_path/'out', **how)
    assert load_image(result).equal(load_image(tmp_path/'two.png')) and len(read_record(result)['faces'])==(1 if how else 2)

def test_a_small_photo_of_nothing_else_is_one_square(tmp_path):
    save_image(resize(astronaut(), 64), tmp_path/'her.png'); save_image(resize(data_rocket(), 60)[..., :40], tmp_path/'none.png'); r = OnePass(load_restorer('identity'), 96)
    assert load_image(restore_file(tmp_path/'her.png', r, tmp_path/'out')[0]).shape[-2:]==(96, 96)
    with pytest.warns(UserWarning, match='no face found; all of it is restored as one'): restore_file(tmp_path/'none.png', r, tmp_path/'out')
    with pytest.raises(ImageError, match='none.png: no detector .magic.'): restore_file(tmp_path/'none.png', r, tmp_path/'out', force=True, detector='magic')

def data_rocket(): return to_tensor(data.rocket()/255)

@pytest.mark.parametrize('side', [88, 104, 152, 200])
@pytest.mark.parametrize('recipe', ['dda', 'pseudo', 'dr2'])
def test_recipes_at_any_side_hold_by_a_factor_of_it(tiny, recipe, side):
    other = copy.copy(tiny); other.side = side
    [c] = recipe_arguments(recipe, torch.zeros(1,3,side,side), other)['constraints']; N = c.phi.keywords['N'] if hasattr(c, 'phi') else c.filter.keywords['N']
    assert side%N==0 and 2<=N<=10

@pytest.mark.parametrize('kw', [dict(steps='5,1', K=44), dict(recipe='dr2', K=3)])
def test_a_walk_that_cannot_be_is_said_before_anything_is_made(faces64, kw):
    with pytest.raises(ValueError, match='would start at index|ends before it has begun'): Restorer(faces64, **kw)

def test_a_record_that_lacks_something(tmp_path):
    save_image(y, tmp_path/'x.png', dict(gen2res=json.dumps(dict(recipe='plain', weights='', seed=0, samples=1, kept=0, source='', crop='')))  )
    with pytest.raises(ImageError, match='x.png: its record lacks K, prior, steps'): read_record(tmp_path/'x.png')

def test_a_face_larger_than_the_prior_sees_is_said(tiny, tmp_path):
    save_image(astronaut(), tmp_path/'her.png')
    with pytest.warns(UserWarning, match=r'her\.png: a face of \d+ pixels, restored at 16: nothing finer is repaired'): restore_file(tmp_path/'her.png', Restorer(tiny, K=2), tmp_path/'large')
    save_image(resize(astronaut(), 32), tmp_path/'small.png')
    with warnings.catch_warnings(): warnings.simplefilter('error', UserWarning); restore_file(tmp_path/'small.png', Restorer(tiny, K=2), tmp_path/'small', which='centre')

def test_what_the_record_would_not_hold_is_refused(tiny, tmp_path):
    save_image(astronaut(), tmp_path/'her.png')
    with pytest.raises(TypeError, match='step'): restore_file(tmp_path/'her.png', Restorer(tiny, K=20), tmp_path/'out', step=ddim)

def test_record_of_another_prior(tiny, faces64):
    with pytest.raises(ValueError, match='made with tiny, weights .*; this is faces64'): restorer_of(json.loads(record(Restorer(tiny).settings())['gen2res']), faces64)

def test_the_record_of_a_person(tiny):
    her = tune(tiny, y, **QUICK); about = Restorer(her, K=20).settings()
    assert about['person']['iterations']==QUICK['iters'] and 'loss' not in about['person'] and 'person' not in Restorer(tiny, K=20).settings()
    with pytest.raises(ValueError, match='tuned on a person'): restorer_of(json.loads(record(about)['gen2res']), tiny)

def test_several_samples_of_one_photo_only(tiny):
    with pytest.raises(ValueError, match='of one photo'): Restorer(tiny, K=4)(torch.cat([y, y]), samples=2)
    with pytest.raises(ValueError, match="no tuning 'slow'; there are"): Restorer(tiny, 'generative', tuning='slow')

def test_a_picture_too_large_to_open_costs_one_line(tmp_path, tiny, monkeypatch):
    for name in ('a', 'b'): save_image(resize(astronaut(64), 1500 if name=='a' else 64), tmp_path/f'{name}.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1_000_000); said = []                      # Pillow refuses twice as many
    failed = restore_files([tmp_path], Restorer(tiny, K=4), tmp_path/'o', report=lambda *l, **kw: said.extend(l))
    assert len(failed)==1 and 'a.png' in str(failed[0]) and (tmp_path/'o'/'b_restored.png').exists()

def test_memory_that_runs_out_costs_one_photo(tmp_path, tiny, monkeypatch):
    for name in 'ab': save_image(y, tmp_path/f'{name}.png')
    from gen2res import restore as R
    walk = R.restore; monkeypatch.setattr(R, 'restore', lambda *a, **kw: failing.pop()() if failing else walk(*a, **kw))
    def out(): raise torch.OutOfMemoryError('out of memory\nand much more')
    failing,said = [out],[]
    assert restore_files([tmp_path], Restorer(tiny, K=4), tmp_path/'o', report=lambda *l, **kw: said.extend(l))==[tmp_path/'a.png']
    assert said[0]==f'failed: {tmp_path}/a.png: out of memory' and (tmp_path/'o'/'b_restored.png').exists()

def test_result_sheet_and_record_are_there_together_or_not_at_all(tmp_path, tiny, monkeypatch):
    from gen2res import restore as R
    save_image(y, tmp_path/'a.png'); args = [tmp_path/'a.png'],Restorer(tiny, K=4),tmp_path/'o'
    def killed(*a): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(R, 'before_after', killed)                                               # after the picture was written
        with pytest.raises(KeyboardInterrupt): restore_files(*args)
    assert not [*(tmp_path/'o').iterdir()]
    assert not restore_files(*args, report=lambda *a, **kw: None) and len([*(tmp_path/'o').iterdir()])==3

def test_no_record(tmp_path):
    with pytest.raises(ImageError, match='no such file'): read_record(tmp_path/'none.png')
    save_image(astronaut(64), tmp_path/'x.png')
    with pytest.raises(ImageError, match='carries no record'): read_record(tmp_path/'x.png')
    for odd in ('{"a": 1}', '[1]', 'x'):
        save_image(astronaut(64), tmp_path/'x.png', dict(gen2res=odd), overwrite=True)
        with pytest.raises(ImageError, match='carries no record'): read_record(tmp_path/'x.png')

def test_the_photo_is_in_the_album(tiny, tmp_path):
    save_image(y, tmp_path/'a.png'); r = Restorer(tiny, 'closed-form', K=4, album=torch.cat([y, y.flip(2)]))
    with pytest.warns(UserWarning, match='in the album, too'): restore_file(tmp_path/'a.png', r, tmp_path/'o')

def test_what_diverges_costs_its_photo(tiny, tmp_path, monkeypatch):
    from gen2res.train import Diverged
    for n in 'ab': save_image(y, tmp_path/f'{n}.png')
    r = Restorer(tiny, K=4); walk = Restorer._walk; calls = []
    def sick(self, *a, **kw):
        calls.append(1)
        if len(calls)==1: raise Diverged('the loss is not a number')
        return walk(self, *a, **kw)
    monkeypatch.setattr(Restorer, '_walk', sick)
    failed = restore_files([tmp_path/'a.png', tmp_path/'b.png'], r, tmp_path/'o', report=lambda *a, **kw: None)
    assert [p.name for p in failed]==['a.png'] and (tmp_path/'o'/'b_restored.png').exists()

def test_files_of_an_example(faces64, tmp_path):
    restore_example(Restorer(faces64, K=3), tmp_path, report=lambda *a, **kw: None, samples=2)
    about = json.loads((tmp_path/'astronaut_restored.json').read_text())
    assert about['gen2res']['samples']==2 and 'generative model' in about['Comment'] and about['gen2res']==read_record(tmp_path/'astronaut_restored.png')
    assert Image.open(tmp_path/'astronaut_sheet.png').text['Comment']==about['Comment']
    with pytest.raises(ImageError, match='is a sheet'): read_record(tmp_path/'astronaut_sheet.png')

def test_bf16_is_near_and_on_record(tiny, monkeypatch):
    exact = Restorer(tiny, K=20)(y, seeds=7)
    monkeypatch.setattr('gen2res.prior.quick_bf16', lambda device: True)                # emulated, if need be
    tiny.bf16 = True
    r = Restorer(tiny, K=20); quick = r(y, seeds=7)
    assert 0 < (quick-exact).abs().max() < .1 and r.settings()['bf16'] and quick.dtype==torch.float32
    assert torch.equal(restorer_of(json.loads(record(r.settings())['gen2res']), tiny)(y, seeds=7), quick)
    x = torch.rand(2,3,16,16)*2-1
    with torch.no_grad():
        at_every_call = tiny(x, 9).eps
        with tiny.walking(): assert tiny.quick.input_blocks[0][0].weight.dtype==torch.bfloat16 and torch.equal(tiny(x, 9).eps, at_every_call)
    assert tiny.quick is None and next(tiny.model.parameters()).dtype==torch.float32
    assert Restorer(tiny, 'personal', album=y).tuning['amp'] and not Restorer(tiny, 'personal', album=y, tuning=dict(amp=False)).tuning['amp']
    tiny.bf16 = False
    with tiny.walking(): assert tiny.quick is None
    assert not Restorer(tiny, 'personal', album=y).tuning['amp']
    assert 'bf16' not in Restorer(tiny, K=20).settings()
    with pytest.raises(ValueError, match='made with bf16 = True'): restorer_of(json.loads(record(r.settings()|dict(bf16=True))['gen2res']), tiny)

@pytest.mark.parametrize('recipe,times', [('plain', 1), ('personal', 1), ('generative', 4)]) # there album and walk of each photo
def test_photos_of_one_prior_share_what_their_walks_need(tiny, tmp_path, monkeypatch, recipe, times):
    monkeypatch.setattr('gen2res.prior.quick_bf16', lambda device: True)                 # emulated, if need be
    made,real = [],Prior._for_walks; monkeypatch.setattr(Prior, '_for_walks', lambda self: made.append(self) or real(self))
    for i in range(2): save_image(y.roll(i, -1), tmp_path/f'{i}.png')
    tiny.bf16 = True; r = Restorer(tiny, recipe, K=8, album=y, n=1, every=1, album_steps=2, tuning=dict(iters=1))
    assert not restore_files([tmp_path], r, tmp_path/'o', square=True, which='centre', report=lambda *l, **kw: None)
    assert len(made)==times and r.shared is None and tiny.quick is None
    r(y); assert len(made)>times                                                          # alone it makes its own

def test_bf16_is_not_emulated(tiny, monkeypatch):
    exact = Restorer(tiny, K=20)(y, seeds=7); tiny.bf16 = True
    monkeypatch.setattr('torch.backends.cpu.get_cpu_capability', lambda: 'AVX2')
    assert torch.equal(Restorer(tiny, K=20)(y, seeds=7), exact)

def test_a_killed_restoration_goes_on(tiny, tmp_path, monkeypatch):
    from gen2res.tune import Tuner
    kw = dict(K=20, n=2, album_steps=8, every=2, tuning=QUICK); want = Restorer(tiny, 'generative', **kw)(y, seeds=7)
    done,step = [],Tuner.step
    def killed(self):
        if self.it==2: self.save(); raise KeyboardInterrupt
        return step(self)
    monkeypatch.setattr(Tuner, 'step', killed)
    with pytest.raises(KeyboardInterrupt): Restorer(tiny, 'generative', folder=tmp_path, **kw)(y, seeds=7)
    assert len(list(tmp_path.rglob('album_*.png')))==2 and len(list(tmp_path.rglob('state.pt')))==1
    monkeypatch.setattr(Tuner, 'step', lambda self: done.append(self.it) or step(self))
    assert torch.equal(Restorer(tiny, 'generative', folder=tmp_path, **kw)(y, seeds=7), want) and done==[2]

def test_its_own_results_are_no_photos(tiny, tmp_path):
    from gen2res.restore import restore_files
    save_image(astronaut(32), tmp_path/'a.png'); said = []
    report = lambda *a, **kw: said.extend(map(str, a))
    assert not restore_files([tmp_path], Restorer(tiny, K=4), tmp_path, report=report)
    failed = restore_files([tmp_path], Restorer(tiny, K=4), tmp_path, force=True, report=report)
    assert {p.name for p in failed}=={'a_restored.png', 'a_sheet.png'} and sum('is a result of gen2res' in s for s in said)==2 and len(list(tmp_path.glob('*.png')))==3

def test_names_of_results_do_not_depend_on_what_became_of_others(tmp_path):
    for n,k in (('scan.jpg', 1.), ('scan.png', .5)): save_image(astronaut(64)*k, tmp_path/n)
    r,go = OnePass(load_restorer('identity'), 64),lambda *n, **kw: restore_files([tmp_path/i for i in n], r, tmp_path/'out', report=lambda *a, **kw: None, which='centre', **kw)
    assert go('scan.jpg')==[] and go('scan.jpg', 'scan.png')==[tmp_path/'scan.jpg']          # that one is done already; the other is not its
    assert load_image(tmp_path/'out/scan_restored.png').equal(load_image(tmp_path/'scan.jpg')) and load_image(tmp_path/'out/scan.png_restored.png').equal(load_image(tmp_path/'scan.png'))

def test_the_sheet_says_whose_faces_they_are(tmp_path, monkeypatch):
    save_image(torch.cat([resize(astronaut(), 200)]*2, -1), tmp_path/'two.png'); save_image(resize(data_rocket(), 200)[..., :200], tmp_path/'none.png')
    seen = []; monkeypatch.setattr('gen2res.restore.before_after', lambda pictures, labels: seen.extend(labels) or Image.new('RGB', (8, 8)))
    r = OnePass(load_restorer('identity'), 64); go = lambda n, **kw: (seen.clear(), restore_file(tmp_path/n, r, tmp_path/'out', force=True, **kw), ' | '.join(seen))[-1]
    assert 'the largest face, ' in go('two.png', which='largest') and 'face 1, ' in go('two.png', which='1') and 'face 0, ' in go('two.png')
    with pytest.warns(UserWarning, match='none.png: no face found; all of it is restored as one'): assert 'none: no face found' in go('none.png')

def test_no_seam_beside_a_portrait_that_is_nearly_square(tmp_path):
    save_image(torch.nn.functional.pad(astronaut(300), (0, 0, 12, 12), 'reflect'), tmp_path/'her.png')
    class Other(OnePass):
        def __call__(self, y, *a, **kw): return -super().__call__(y, *a, **kw)
    made = load_image(restore_file(tmp_path/'her.png', Other(load_restorer('identity'), 64), tmp_path/'out')[0]); change = (made-load_image(tmp_path/'her.png')).abs().mean((0, 1, 3))
    assert change[150] > .3 and not change[:10].any() and change.diff().abs().max() < .1         # it fades out
