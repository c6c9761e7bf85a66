"Albums: deterministic, cached, resumed, split when memory runs out; folders of photos as they come."
import io, warnings
from functools import partial
import pytest, torch
from PIL import Image
from gen2res import album as A
from gen2res.album import SHEET, album_K, album_record, album_sheet, generative_album, guide_every, in_batches, personal_album, read_album, shows
from gen2res.images import ImageError, astronaut, load_image, resize, save_image, seeded
from gen2res.prior import weights_hash
from gen2res.restore import Restorer
from gen2res.sample import ddim

def photo(): return resize(astronaut(64), 16)
def made(tiny, **kw): return generative_album(photo(), tiny, **{**dict(n=3, K=20, every=5, scale=.1), **kw})

def test_deterministic_and_different(tiny):
    a = made(tiny)
    assert a.shape==(3,3,16,16) and torch.equal(a, made(tiny)) and not torch.equal(a[0], a[1]) and a.abs().max() <= 1
    levels = (a+1)*127.5
    assert (levels-levels.round()).abs().max() < 1e-3                                   # as a file holds it

def test_alone_split_or_together(tiny):
    a = made(tiny, n=4, batch=4)
    for b in (made(tiny, n=4, batch=1), made(tiny, n=4, batch=3), made(tiny, seeds=[0,1,2,3]), torch.cat([made(tiny, seeds=[s]) for s in range(4)])):
        assert (a-b).abs().max() <= 2.1/255                                             # at most one 8-bit level

def test_settings_matter(tiny):
    a = made(tiny)
    assert A._name(partial(ddim, eta=.5))==A._name(partial(ddim, eta=.5))!=A._name(partial(ddim, eta=.6))
    for kw in (dict(K=21), dict(every=2), dict(scale=1.), dict(seeds=9), dict(steps=5), dict(norm='l1'), dict(last=995), dict(step=ddim)):
        assert not torch.equal(a, made(tiny, **kw)), kw

def test_resumed_picture_by_picture(tiny, tmp_path, monkeypatch):
    whole = made(tiny, folder=tmp_path, batch=1)
    first = (tmp_path/'album_0000.png').stat().st_mtime_ns
    (tmp_path/'album_0001.png').unlink()                                                # killed before the second
    (tmp_path/'album_0002.png').write_bytes(b'torn')                                    # or in the middle of the third
    drawn,draw = [],A._draw
    monkeypatch.setattr(A, '_draw', lambda y, prior, seeds, *a, **kw: drawn.extend(seeds) or draw(y, prior, seeds, *a, **kw))
    assert torch.equal(made(tiny, folder=tmp_path, batch=1), whole)
    assert drawn==[1,2] and (tmp_path/'album_0000.png').stat().st_mtime_ns==first
    drawn.clear(); assert torch.equal(made(tiny, n=5, folder=tmp_path, batch=1)[:3], whole) and drawn==[3,4]   # a larger album only adds
    drawn.clear(); made(tiny, K=19, folder=tmp_path, batch=1); assert drawn==[0,1,2]                          # other settings, other pictures
    with pytest.raises(ValueError, match='a step rule without a name'): made(tiny, folder=tmp_path, step=lambda st: ddim(st, eta=.3))
    assert made(tiny, step=lambda st: ddim(st, eta=.3)).shape==whole.shape

def test_stopped_in_the_middle_keeps_what_was_finished(tiny, tmp_path):
    class Stop(Exception): pass
    def stop(st):
        if (tmp_path/'album_0001.png').exists(): raise Stop
    with pytest.raises(Stop): made(tiny, folder=tmp_path, batch=1, callback=stop)
    assert sorted(p.name for p in tmp_path.iterdir())==['album_0000.png', 'album_0001.png']

def test_what_walked_together_before_it_was_stopped_is_kept(tiny, tmp_path):
    class Stop(Exception): pass
    def stop(st):
        if (tmp_path/'album_0003.png').exists(): raise Stop                                # four by four on a processor
    with pytest.raises(Stop): made(tiny, n=6, folder=tmp_path, callback=stop)
    assert len([*tmp_path.iterdir()])==A.together(tiny, 6)==4
    kept = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert torch.equal(made(tiny, n=6, folder=tmp_path), made(tiny, n=6)) and all(p.stat().st_mtime_ns==t for p,t in kept.items())

def test_pictures_say_what_they_are(tiny, tmp_path):
    made(tiny, n=1, folder=tmp_path)
    assert 'generative model' in Image.open(tmp_path/'album_0000.png').text['Comment']

@pytest.mark.parametrize('kw', [dict(every=9, steps=8), dict(scale=-1.), dict(scale=float('nan')), dict(n=0)])
def test_what_makes_no_sense_is_refused(tiny, kw):
    with pytest.raises(ValueError, match='every = 9|scale must|no pictures'): generative_album(photo(), tiny, **{'n': 1, 'K': 20} | kw)

def test_guided_as_often_in_fewer_steps(tiny):
    assert [A.guide_every(K, n) for K,n in ((600, 600), (344, 86), (344, 15), (600, 86))]==[20, 5, 1, 3]
    assert torch.equal(generative_album(photo(), tiny, 1, K=80, steps=20), generative_album(photo(), tiny, 1, K=80, steps=20, every=5))

def test_photos_without_a_face_are_named(tmp_path):
    save_image(torch.zeros(1, 3, 90, 120), tmp_path/'lawn.png')
    with pytest.warns(UserWarning, match='no face found in lawn.png'): personal_album(tmp_path, 64)
    with pytest.raises(ImageError, match='lawn.png: is not a folder'): personal_album(tmp_path/'lawn.png', 64)
    with pytest.raises(ImageError, match='away: no such folder'): personal_album(tmp_path/'away', 64)

def test_one_photo_only(tiny):
    with pytest.raises(ValueError, match='from one photo'): generative_album(photo().expand(2,-1,-1,-1), tiny)

def test_no_noise_is_the_photo(tiny): assert (made(tiny, K=0)-photo()).abs().max() < 1.01/255

def test_the_prior_is_hashed_once(tiny, monkeypatch):
    seen = []; monkeypatch.setattr('gen2res.prior.weights_hash', lambda model, real=weights_hash: seen.append(1) or real(model))
    made(tiny, n=3); assert seen==[1]
    r = Restorer(tiny, K=2); r(photo()); r.settings(); assert seen==[1,1]

def test_paper_K(faces64): assert album_K(faces64)==344

@pytest.mark.parametrize('error', [torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")])
def test_memory_runs_out(error):
    tried = []
    def do(some):
        tried.append(len(some))
        if len(some)>2: raise error
        return [s*10 for s in some]
    got = [r for _,rs in in_batches(do, range(7), 7) for r in rs]
    assert got==[0,10,20,30,40,50,60] and tried==[7,3,1,1,1,1,1,1,1]
    with pytest.raises(type(error)): list(in_batches(lambda s: (_ for _ in ()).throw(error), [1], 4))
    with pytest.raises(RuntimeError, match='shapes'): list(in_batches(lambda s: (_ for _ in ()).throw(RuntimeError('shapes')), [1, 2], 2))

# -- personal albums -----------------------------------------------------------
def faces(n, side=64): return [resize(seeded(i, 1).randn_like(torch.zeros(1,3,6,6)).clamp(-1,1), side) for i in range(n)]

@pytest.fixture
def folder(tmp_path):
    for i,x in enumerate(faces(6)): save_image(x, tmp_path/f'{i}.png')
    return tmp_path

def quietly(f, *a, **kw):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        return f(*a, **kw),[str(w.message) for w in said]

def test_reads_everything(folder):
    (album,said) = quietly(personal_album, folder, 64)
    assert album.shape==(6,3,64,64) and not said
    assert torch.equal(album[2:3], load_image(folder/'2.png'))

@pytest.mark.parametrize('again', [lambda x: x, lambda x: resize(x, 40), lambda x: load_jpeg(x, 60), lambda x: (x+.03).clamp(-1,1), lambda x: (x+1)*.8-1])
def test_same_picture_twice(folder, again):
    save_image(again(faces(6)[3]), folder/'z.png')
    members = read_album(folder, 64)
    out = [m for m in members if m.verdict]
    assert len(members)==7 and len(out)==1 and 'the same picture as' in out[0].verdict and {out[0].path.name, out[0].verdict.split()[-1]}=={'3.png', 'z.png'}

def load_jpeg(x, q):
    f = io.BytesIO(); Image.fromarray(((x[0]+1)*127.5).round().byte().permute(1,2,0).numpy()).save(f, 'jpeg', quality=q); f.seek(0)
    from gen2res.images import to_tensor
    import numpy as np
    return to_tensor(np.asarray(Image.open(f))/255.)

def test_a_generative_album_is_alike_on_purpose(tiny, tmp_path):
    made(tiny, n=6, K=2, every=1, folder=tmp_path)
    assert len(quietly(personal_album, tmp_path, 16)[0])==6

def test_the_larger_twin_stays(folder):
    save_image(resize(faces(6)[3], 128), folder/'z.png')
    assert [m.path.name for m in read_album(folder, 64) if m.verdict]==['3.png']

def test_turned_by_exif(tmp_path):
    exif = Image.Exif(); exif[0x0112] = 6
    im = Image.fromarray(((faces(1)[0][0]+1)*127.5).round().byte().permute(1,2,0).numpy())
    im.rotate(90, expand=True).save(tmp_path/'a.png', exif=exif)
    assert (quietly(personal_album, tmp_path, 64)[0]-faces(1)[0]).abs().max() < 2/255

def test_rejects_are_explained(folder):
    (folder/'torn.jpg').write_bytes(b'\xff\xd8torn'); (folder/'empty.png').touch()
    album,said = quietly(personal_album, folder, 64)
    assert len(album)==6 and len(said)==2 and all('left out' in s for s in said)
    assert album_sheet(read_album(folder, 64)).width > 0

def test_what_was_made_here_is_no_photo_of_a_person(folder):
    save_image(astronaut(64), folder/'old_restored.png', dict(gen2res='{}')); save_image(astronaut(64), folder/'she.png', album_record(SHEET)); save_image(faces(8)[7], folder/'bed_sheet.png')
    said = {m.path.name: m.verdict for m in read_album(folder, 64)}
    save_image(astronaut(64), folder/'target.png', {'gen2res-target': '{}', 'Comment': 'Made by a generative model: a training target, not a photo of anybody.'}); save_image(faces(9)[8], folder/'gimp.png', dict(Comment='Created with GIMP'))
    said = {m.path.name: m.verdict for m in read_album(folder, 64)}
    assert 'a result of gen2res' in said['target.png'] and said['gimp.png']=='' and 'a result of gen2res' in said['old_restored.png'] and said['she.png']=='a contact sheet' and said['bed_sheet.png']==''

def test_the_photo_in_its_own_album():
    album = torch.cat(faces(3)); assert shows(album, resize(album[1:2], 80)) and not shows(album, faces(4)[3])

def test_every_album_is_guided(tiny):
    assert guide_every(600, 600)==20 and guide_every(10, 10)==10 and guide_every(3, 3)==3     # a short walk: once
    with pytest.raises(ValueError, match='never be guided'): made(tiny, K=5, every=9)
    with pytest.raises(ValueError, match='not numbers'): generative_album(photo()*float('nan'), tiny, 1, K=2)

@pytest.mark.parametrize('n,side,line', [(3, 64, 'only 3 different pictures'), (1, 64, 'only 1 different picture;'), (6, 40, '6 of 6 are smaller than 64')])
def test_worries(tmp_path, n, side, line):
    for i,x in enumerate(faces(n, side)): save_image(x, tmp_path/f'{i}.png')
    album,said = quietly(personal_album, tmp_path, 64)
    assert len(album)==n and any(line in s for s in said)

def test_mixed_sizes(folder):
    save_image(astronaut(400), folder/'big.png')
    assert any('sizes from 64 to 400' in s for s in quietly(personal_album, folder, 64)[1])

def test_nothing_usable(tmp_path):
    with pytest.raises(ImageError, match='no pictures here'): personal_album(tmp_path)
    (tmp_path/'a.png').touch()
    with pytest.raises(ImageError, match='none of 1 files can be used'): personal_album(tmp_path)

def test_only_made_pictures_are_removed(tiny, tmp_path):
    made(tiny, n=3, folder=tmp_path)
    save_image(astronaut(64), tmp_path/'album_holiday.png'); (tmp_path/'album_0009.png').write_bytes(b'mine')
    A.keep_only(tmp_path, range(2))
    assert sorted(p.name for p in tmp_path.iterdir())==['album_0000.png', 'album_0001.png', 'album_0009.png', 'album_holiday.png']

def test_a_picture_that_nobody_made_is_not_overwritten(tiny, tmp_path):
    from gen2res.images import save_image
    own = save_image(torch.zeros(1,3,16,16), tmp_path/'album_0001.png'); before = own.read_bytes()
    with pytest.raises(ImageError, match='not a picture of an album'): generative_album(torch.zeros(1,3,16,16), tiny, 2, K=10, folder=tmp_path)
    assert own.read_bytes()==before

def test_somebody_else_is_named(tmp_path, monkeypatch):
    "One picture unlike the others; likeness is made up here, so that the rule is tested and not the embedder."
    from gen2res import album as m
    axes = torch.eye(4); codes = [axes[0]+.3*axes[1]]*5+[axes[2]]
    monkeypatch.setattr(m, 'embed', lambda x, net: torch.nn.functional.normalize(torch.stack(codes[:len(x)]), dim=1))
    members = [m.Member(tmp_path/f'{i}.png', torch.rand(1,3,64,64)*2-1, 64, '') for i in range(6)]
    assert [s.path.name for s in m.strangers(members)]==['5.png'] and any('5.png' in l and 'same person' in l for l in m.album_worries(members, 64))
    assert not m.strangers(members[:5]) and not m.strangers(members[4:])          # all alike; too few to tell
    assert not m.strangers([x._replace(made=True) for x in members])               # a generative album is alike on purpose
