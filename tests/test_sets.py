"The papers' own photos: found, counted, measured."
import pytest, torch, warnings
from gen2res.degrade import degrade
from gen2res.images import ImageError, astronaut, save_image
from gen2res.sets import SETS, Sets, set_files, set_table

@pytest.fixture
def celeba(tmp_path):
    for i in range(3):
        save_image(astronaut(96), tmp_path/'celeba_test'/'gt'/f'{i}.png')
        save_image(degrade(astronaut(96), 'small', seeds=i), tmp_path/'celeba_test'/'lq'/f'{i}.jpg')
    return tmp_path

def test_files_and_truths_belong_together(celeba):
    with pytest.warns(UserWarning, match='3 photos, where 3000 are known'): files = set_files(celeba, 'celeba-test')
    assert [(p.name, t.name) for p,t in files]==[(f'{i}.jpg', f'{i}.png') for i in range(3)]
    (celeba/'celeba_test'/'gt'/'1.png').unlink()
    with pytest.warns(UserWarning), pytest.raises(ImageError, match='1.jpg: has no truth'): set_files(celeba, 'celeba-test')

def test_a_whole_set_is_no_warning(tmp_path, monkeypatch):
    monkeypatch.setitem(SETS, 'deblur-test', SETS['deblur-test']._replace(count=1)); save_image(astronaut(32), tmp_path/'deblur_test'/'a.png')
    with warnings.catch_warnings(): warnings.simplefilter('error'); assert len(set_files(tmp_path, 'deblur-test'))==1

@pytest.mark.parametrize('name,word', [('lfw-test', 'lfw_test: is not there'), ('imagenet', 'there are: wider-test')])
def test_what_is_missing_is_said(name, word, tmp_path):
    with pytest.raises(ImageError, match=word): set_files(tmp_path, name)

@pytest.mark.filterwarnings('ignore:.*where the paper')
def test_table_with_truth(celeba, faces64, tmp_path):
    b = Sets(celeba, faces64, tmp_path/'w'); rows = list(set_table(b, 'celeba-test', ['plain'], n=2, steps=2))
    assert {'psnr','ids64','fine detail, dB'} <= {r['metric'] for r in rows} and {r['method'] for r in rows}=={'input','plain'} and all(r['n']==2 for r in rows)
    made = sorted((tmp_path/'w').iterdir()); assert len(made)==4
    assert list(set_table(b, 'celeba-test', ['plain'], n=2, steps=2))==rows and sorted((tmp_path/'w').iterdir())==made
    with pytest.raises(ValueError, match='personal'): list(set_table(b, 'celeba-test', ['personal']))
    faces64.bf16 = False

def test_command(celeba, tmp_path):
    from typer.testing import CliRunner
    from gen2res.cli import app
    run = lambda *a: CliRunner().invoke(app, ['bench', *map(str, a), '--data', str(celeba), '--work', str(tmp_path/'w'), '-o', str(tmp_path/'t.csv')])
    r = run('set-lfw-test'); assert r.exit_code==2 and 'lfw_test: is not there' in r.stderr
    r = run('set-celeba-test', '--methods', 'plane'); assert r.exit_code==2 and "no recipe 'plane'" in r.stderr
    assert not (tmp_path/'t.csv').exists()
