"Squares from photos."
import pytest, torch
from skimage import data
from gen2res.faces import Face, crop, detect, face_square
from gen2res.images import astronaut, resize, to_tensor

def photo(): return to_tensor(data.astronaut()/255)

def test_finds_her_best_first():
    faces = detect(photo())
    assert abs(faces[0].x+faces[0].side/2-225) < 12 and abs(faces[0].y+.46*faces[0].side-102) < 12
    assert faces==detect(photo(), support=2)[:len(faces)] and all(f.support>=8 for f in faces)
    support = [f.support for f in detect(photo(), support=1)]
    assert len(support)>len(faces) and support==sorted(support, reverse=True)

def test_the_mirror_image_has_the_mirrored_face():
    f,g = detect(photo())[0],detect(photo().flip(-1))[0]
    assert abs((512-f.x-f.side)-g.x) < 2 and abs(f.y-g.y) < 2 and abs(f.side-g.side) < 2 and abs(f.support-g.support) < 3

def test_noise_and_cloth_are_no_faces():
    assert not detect(torch.rand(1,3,200,200, generator=torch.Generator().manual_seed(0))*2-1)
    assert not detect(to_tensor(data.brick()[...,None].repeat(3, -1)/255))

@pytest.mark.parametrize('x,y', [(-5,10), (40,10), (10,-5), (10,40), (-8,-8), (-30,5)])
def test_crop_over_every_edge(x, y):
    image = torch.arange(50.).expand(1,3,50,50); c = crop(image, Face(x, y, 20))
    assert c.shape==(1,3,20,20)
    for i in range(20): assert c[0,0,0,i]==min(max(x+i, 0), 49)

@pytest.mark.parametrize('shape', [(1,3,1,1), (1,3,20,20), (1,3,3,900), (1,3,900,3)])
def test_no_face_no_crash(shape): assert face_square(torch.zeros(shape), 64)[0].shape==(1,3,64,64)

def test_how():
    assert face_square(photo(), 64)[1]=='face' and face_square(astronaut(256), 64)[1]=='aligned' and face_square(torch.zeros(1,3,90,60), 64)[1]=='centre'
    assert face_square(resize(astronaut(5), 64), 64)[1]=='square'         # too damaged to be found; taken as it is, and the sheet says so

def test_turned_to_grey_and_back_it_is_still_there():
    grey = photo().mean(1, keepdim=True).expand(-1,3,-1,-1)
    assert abs(detect(grey)[0].side-detect(photo())[0].side) < 30

def test_a_square_portrait_is_cut_to_the_face():
    f = detect(photo())[0]; big = crop(photo(), Face(f.x-.3*f.side, f.y-.3*f.side, 1.6*f.side))     # centred, but the face fills 0.62 of it
    cut,how = face_square(big, 64)
    assert how=='face' and (cut-face_square(photo(), 64)[0]).abs().mean() < .1

def test_noise_does_not_hide_her():
    from gen2res.degrade import degrade
    found = [detect(degrade(resize(photo(), 512), 'camera:severe', seeds=s, scale=4)) for s in range(4)]
    assert sum(bool(d) and abs(d[0].x+d[0].side/2-221) < 25 and abs(d[0].y+d[0].side/2-113) < 25 for d in found)>=3
