"Faces in photos: found, cut upright, put back."
import json, math, subprocess, sys, types
from functools import lru_cache
import numpy as np, pytest, torch
from PIL import Image
from skimage import data
from torchvision.transforms.functional import rotate
from gen2res import faces
from gen2res.faces import (EYES, Face, NoFace, align, as_sharp, boxed, by_eyes, cascade, chosen, corners, crop, detect, face_of, face_square, feather, find_faces, in_its_colours, look_for,
                           marked, middle, paste_back, put_back, whole, yunet)
from gen2res.images import ImageError, astronaut, load_photo, resize, to_array, to_pil, to_tensor

HER = (203.7+247.5)/2,102.5 # between her eyes, found by hand
SPAN = 247.5-203.7
def photo(): return to_tensor(data.astronaut()/255)
@lru_cache
def hers(): return tuple(detect(photo()))                                  # five seconds
def eyes(f):
    "(x, y) of the two eyes of an aligned square."
    (x,y),a = middle(f),math.radians(f.angle)
    return [(x+((u-.5)*math.cos(a)-(v-.5)*math.sin(a))*f.side, y+((u-.5)*math.sin(a)+(v-.5)*math.cos(a))*f.side) for u,v in EYES]
def off(f, at=HER): return math.dist([sum(p)/2 for p in zip(*eyes(f))], at)/SPAN # in distances between her eyes

def test_eyes_and_square_are_the_same_thing():
    for f in (Face(10, 20, 100), Face(-30, 7, 64, angle=33.), Face(5, 5, 40, angle=-80.)):
        g = by_eyes(*eyes(f))
        assert g.x==pytest.approx(f.x, abs=1e-6) and g.y==pytest.approx(f.y, abs=1e-6) and g.side==pytest.approx(f.side) and g.angle==pytest.approx(f.angle)

def test_finds_her_and_nothing_else():
    found = hers()
    assert len(found)==1 and off(found[0])<.15 and abs(found[0].side*.26/SPAN-1)<.15 and found[0].score>.9
    assert len([f for f in cascade(photo()) if f.support>=8])>1               # the cascade alone takes more for faces

def test_small_heads_in_a_large_photo():
    wall = Image.fromarray(data.brick()).convert('RGB').resize((1200, 800)); spots = [(150, 200), (600, 150), (950, 500), (400, 600)]
    small = Image.fromarray(data.astronaut()).crop((130, 20, 330, 220)).resize((80, 80))
    for x,y in spots: wall.paste(small, (x, y))
    found = find_faces(wall)
    assert len(found)==4 and all(any(math.dist(middle(f), (x+38, y+38)) < 10 for f in found) for x,y in spots)

@pytest.mark.parametrize('turn', [-45, -25, 25, 45])
def test_finds_a_tilted_head(turn):
    [f] = detect(rotate(photo(), -turn, fill=photo().mean((0,2,3)).tolist()))      # torchvision turns against the clock
    [g] = hers()
    a = math.radians(turn); dx,dy = HER[0]-256,HER[1]-256
    assert abs(f.angle-g.angle-turn) < 6 and off(f, (256+dx*math.cos(a)-dy*math.sin(a), 256+dx*math.sin(a)+dy*math.cos(a))) < .2

def test_the_mirror_image_has_the_mirrored_face():
    f,g = hers()[0],detect(photo().flip(-1))[0]
    assert abs((512-f.x-f.side)-g.x) < 4 and abs(f.y-g.y) < 4 and abs(f.side-g.side) < 4 and abs(f.angle+g.angle) < 4

def test_noise_and_cloth_are_no_faces():
    assert not detect(torch.rand(1,3,200,200, generator=torch.Generator().manual_seed(0))*2-1)
    assert not detect(to_tensor(data.brick()[...,None].repeat(3, -1)/255))

@pytest.mark.parametrize('x,y', [(-5,10), (40,10), (10,-5), (10,40), (-8,-8), (-30,5)])
def test_crop_over_every_edge(x, y):
    image = torch.arange(50.).expand(1,3,50,50); c = crop(image, Face(x, y, 20))
    assert c.shape==(1,3,20,20)
    for i in range(20): assert c[0,0,0,i]==min(max(x+i, 0), 49)

def test_a_quarter_turn_is_exact():
    image = torch.arange(2500.).view(1,1,50,50).expand(1,3,50,50)
    assert torch.allclose(crop(image, Face(10, 5, 20, angle=90.)), crop(image, Face(10, 5, 20)).rot90(1, (2, 3)), atol=1e-2)

@pytest.mark.parametrize('shape', [(1,3,1,1), (1,3,20,20), (1,3,3,900), (1,3,900,3)])
def test_no_face_no_crash(shape): assert face_square(torch.zeros(shape), 64)[0].shape==(1,3,64,64)

def test_how():
    assert face_square(photo(), 64)[1]=='face' and face_square(astronaut(256), 64)[1]=='aligned' and face_square(torch.zeros(1,3,90,60), 64)[1]=='centre'
    assert face_square(resize(astronaut(5), 64), 64)[1]=='square'         # too damaged to be found; taken as it is, and the sheet says so

def test_grey_too():
    f = detect(photo().mean(1, keepdim=True).expand(-1,3,-1,-1))[0]
    assert off(f)<.2

def test_a_square_portrait_is_cut_to_the_face():
    f = hers()[0]; big = crop(photo(), Face(f.x-.3*f.side, f.y-.3*f.side, 1.6*f.side))     # centred, but the face fills 0.62 of it
    cut,how = face_square(big, 64)
    assert how=='face' and (cut-face_square(photo(), 64)[0]).abs().mean() < .1

def test_noise_does_not_hide_her():
    from gen2res.degrade import degrade
    found = [detect(degrade(resize(photo(), 512), 'camera:severe', seeds=s, scale=4)) for s in range(4)]
    assert sum(any(off(f)<.6 for f in d[:2]) for d in found)>=3              # first or second

# back into the photo

TURNED = Face(100, 40, 150., angle=20.)

def test_what_was_not_changed_comes_back_bit_for_bit():
    p = photo(); assert paste_back(p, align(p, TURNED, 64), TURNED) is p
    im = Image.fromarray(data.astronaut()); again = im.copy(); put_back(again, face_of(im, TURNED, 64), TURNED)
    assert np.array_equal(np.asarray(again), data.astronaut())

@pytest.mark.parametrize('side', [40., 64., 150., 300.])
def test_a_change_arrives_where_it_was_made(side):
    p,f = photo()*.5,Face(100, 60, side, angle=25.)
    spot = torch.zeros(1,3,64,64); spot[...,20:28,36:44] = .3; spot[...,36:44,20:28] = -.3
    d = paste_back(p, align(p, f, 64)+spot, f)-p
    a = math.radians(25); at = lambda u, v: (middle(f)[0]+(u*math.cos(a)-v*math.sin(a))*side, middle(f)[1]+(u*math.sin(a)+v*math.cos(a))*side)
    w = d.mean((0,1)).clamp(min=0); w[w<.03] = 0; ys,xs = torch.meshgrid(torch.arange(512)+.5, torch.arange(512)+.5, indexing='ij')
    seen = (w*xs).sum()/w.sum(),(w*ys).sum()/w.sum()
    assert math.dist(seen, at(40/64-.5, 24/64-.5)) < .02*side+.5

def test_a_small_face_may_change_from_white_to_black():
    p = torch.zeros(1, 3, 100, 100)-.8; f = Face(30, 30, 40); p[...,48:52,30:70] = 1
    y = align(p, f, 64); dark = torch.where(y>-.6, torch.full_like(y, -.8), y)
    assert paste_back(p, dark, f, ramp=0.)[...,49:51,45:55].mean() < -.5

def test_nothing_outside_the_square_and_no_edge():
    p = photo(); y = paste_back(p, -align(p, TURNED, 64), TURNED); d = (y-p).abs().amax(1)[0]
    xs,ys = zip(*corners(TURNED))
    assert not d[:int(min(ys))-1].any() and not d[int(max(ys))+2:].any() and not d[:,:int(min(xs))-1].any() and not d[:,int(max(xs))+2:].any() and d.max()>.3
    flat = torch.zeros(1,3,200,200); lit = torch.zeros(1,3,64,64); lit[...,16:48,16:48] = .6
    y = paste_back(flat, lit, Face(40, 40, 120))
    edge = torch.cat([y[0,0,40:160,38:44].diff(dim=1).flatten(), y[0,0,38:44,40:160].diff(dim=0).flatten()])
    assert edge.abs().max() < .02                                          # falls to nothing before the square ends

def test_no_patch_of_another_light_and_no_new_hue():
    p = photo(); y = align(p, TURNED, 64)
    brighter = paste_back(p, (y+.2).clamp(-1, 1), TURNED)
    assert (brighter-p).abs().mean() < .004                               # a shift of everything is not taken over
    grey = p.mean(1, keepdim=True).expand(-1,3,-1,-1); y = align(grey, TURNED, 64)
    pink = y.clone(); pink[:,0,20:40,20:40] += .3
    out = paste_back(grey, pink, TURNED); assert (out[:,0]-out[:,1]).abs().max() < .01 and (out-grey).abs().max() > .03
    colour = align(p, TURNED, 64); pink = colour.clone(); pink[:,0,20:40,20:40] += .3
    d = paste_back(p, pink, TURNED)-p; assert (d[:,0]-d[:,1]).abs().max() > .1      # in a colour photo it may

def test_no_softer_than_the_photo():
    y = align(photo(), hers()[0], 64); fine = lambda x: (x-resize(resize(x, 32), 64)).pow(2).mean().sqrt().item()
    soft = .6*y+.4*resize(resize(y, 32), 64)
    assert fine(soft)<.7*fine(y) and fine(as_sharp(soft, y))>.93*fine(y)
    noisy = y+.3*torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    assert fine(as_sharp(y, noisy))<1.1*fine(y)                            # noise is not detail
    assert torch.allclose(as_sharp(y, y), y, atol=1e-5)

def test_the_photo_keeps_what_the_prior_cannot_see():
    "A face of 300 pixels with detail finer than 64 pixels hold: it is still there after a restoration."
    p = resize(photo(), 1024); f = hers()[0]; f = Face(2*f.x, 2*f.y, 2*f.side, angle=f.angle)
    y = align(p, f, 64); out = paste_back(p, resize(resize(y, 24), 64), f)
    fine = lambda x: (lambda c: (c-resize(resize(c, 100), c.shape[-1])).pow(2).mean().sqrt().item())(crop(x, f._replace(angle=0)))
    assert fine(out)>.95*fine(p)

def test_feather(): assert feather(64)[32,32]==1 and feather(64)[0].max()<.02 and feather(8, 0).eq(1).all()

# choosing

def test_choosing():
    some = [Face(0, 0, 10), Face(50, 0, 30), Face(0, 90, 20)]
    assert chosen(some, 'all')==some and chosen(some, 'largest')==[some[1]] and chosen(some, '2,0')==[some[2], some[0]]
    assert chosen(some, '1,1')==[some[1]]
    for bad in ('3', '-1', 'x', '0,', '1;2'):
        with pytest.raises(ImageError, match='0, 1, 2'): chosen(some, bad)

def test_a_square_around_a_surer_head_is_no_face():
    from gen2res.faces import _distinct
    head,around,beside,group = Face(180, 150, 40, 9, score=.99),Face(20, 20, 200, 8, score=.9),Face(300, 100, 40, 9, score=.5),Face(180, 80, 60, 9, score=.95)
    assert _distinct([head, around, beside, group])==[head, beside, group] and _distinct([around._replace(score=1.), head])==[around._replace(score=1.), head]

def test_a_photo_on_its_side_is_said_to_be():
    side = Image.fromarray(data.astronaut()).crop((60, 0, 512, 360)).rotate(90, expand=True)
    with pytest.raises(NoFace, match='it seems to lie on its side'): look_for(side)

def test_where_to_look():
    im = Image.fromarray(data.astronaut())
    [f],how = look_for(im); assert how=='face' and off(f)<.15
    assert look_for(to_pil(astronaut(256)))==([Face(0, 0, 256)], 'aligned') and look_for(to_pil(resize(astronaut(5), 128)))==([Face(0, 0, 128)], 'square')
    rocket = Image.fromarray(data.rocket())
    for aligned,which in ((to_pil(astronaut(128)), '7'), (to_pil(resize(astronaut(5), 96)), 'larges')):              # what is asked for is there, or said not to be
        assert look_for(aligned, '0')[0]==[whole(aligned)]
        with pytest.raises(ImageError, match=f'--face {which}: not one of those found here .0.'): look_for(aligned, which)
    with pytest.raises(ImageError, match='no face found; --box'): look_for(rocket)
    assert look_for(rocket, 'centre')==([whole(rocket)], 'centre') and whole(rocket).side==min(rocket.size)
    [b],how = look_for(im, box=(160, 35, 130, 140)); assert how=='box' and off(b)<.15           # refined by the aligner
    [b],_ = look_for(rocket, box=(10, 20, 60, 40)); assert b==Face(10, 10, 60)                   # nothing to refine
    with pytest.raises(ImageError, match='not on the photo'): boxed(rocket, 9000, 0, 10, 10)

def test_large_photos_are_searched_small():
    im = Image.fromarray(data.astronaut()).resize((3000, 3000))
    [f] = find_faces(im); assert off(f, [c*3000/512 for c in HER])*512/3000<.15
    assert marked(im, [f]).size==(1200, 1200)

def test_hundred_megapixels_in_bounded_memory(tmp_path):
    "Peak memory of finding and putting back in a 48-megapixel photo: a few bytes a pixel, not dozens."
    code = """import resource; from PIL import Image; from skimage import data
from gen2res.faces import find_faces, face_of, put_back
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
im = Image.new('RGB', (8000, 6000), 'grey'); im.paste(Image.fromarray(data.astronaut()).resize((4000, 4000)), (500, 500))
[f] = find_faces(im); put_back(im, -face_of(im, f, 64), f)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)*1024/48e6)"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)
    assert done.returncode==0, done.stderr
    assert float(done.stdout)<16, done.stdout

# other detectors

def test_unknown_and_missing_detectors_are_one_line(monkeypatch, tmp_path):
    with pytest.raises(ImageError, match='no detector'): detect(photo(), detector='magic')
    monkeypatch.setitem(sys.modules, 'cv2', None)
    with pytest.raises(ImageError, match='pip install opencv'): detect(photo(), detector='yunet')
    monkeypatch.setitem(sys.modules, 'cv2', types.ModuleType('cv2'))
    with pytest.raises(ImageError, match='opencv_zoo'): yunet(photo(), file=tmp_path/'none.onnx')

def test_yunet_speaks_in_eyes(monkeypatch, tmp_path):
    "Its rows are box, five points and a score; the first two points are the eyes, the image's left one first."
    seen = {}
    class Net:
        def detect(self, bgr):
            seen['shape'] = bgr.shape, bgr[0,0].tolist()
            return 1,np.array([[100, 50, 90, 100, 203.7, 102.5, 247.5, 102.5, 0,0,0,0,0,0, .9], [0, 0, 5, 5, 1, 1, 3, 1, 0,0,0,0,0,0, .95]], np.float32)
    cv2 = types.ModuleType('cv2'); cv2.FaceDetectorYN = types.SimpleNamespace(create=lambda file, config, size, score_threshold: seen.update(size=size) or Net())
    monkeypatch.setitem(sys.modules, 'cv2', cv2); weights = tmp_path/'w.onnx'; weights.touch()
    wide = photo()[...,:400,:]
    [f] = yunet(wide, 20, weights)                                            # the tiny one is left out
    assert json.loads(json.dumps(list(f)))==list(f)                           # it goes into the record
    assert off(f)<1e-4 and f.score==pytest.approx(.9) and seen['size']==(512, 400) and seen['shape']==((400, 512, 3), to_array(wide)[0,0][::-1].tolist())

@pytest.mark.parametrize('x,y', [(-60, 40), (40, -60), (240, 240)])
def test_numbers_of_heads_at_the_border_can_be_read(x, y, monkeypatch):
    lime = lambda: (np.asarray(marked(Image.new('RGB', (300, 300)), [Face(x, y, 140)]))==(0, 255, 0)).all(-1).sum()
    with_number = lime(); monkeypatch.setattr(faces.ImageDraw.ImageDraw, 'text', lambda *a, **kw: None)
    assert with_number > lime()+20
