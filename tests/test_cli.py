"The command, as a user runs it."
import json, subprocess, sys
from functools import partial
from pathlib import Path
import pytest, torch
from PIL import Image
from typer.testing import CliRunner
from gen2res import tune
from gen2res.cli import app
from gen2res.images import astronaut, load_image, save_image, to_array

def run(*args):
    r = CliRunner().invoke(app, [str(a) for a in args])
    assert r.exception is None or isinstance(r.exception, SystemExit), r.exception
    return r.exit_code,r.stdout,r.stderr

def test_astronaut_writes_both_and_prints_both(tmp_path):
    code,out,_ = run('restore', 'astronaut', '-o', tmp_path, '--steps', 4)
    restored,sheet = map(Path, out.split('\n')[:2])
    assert code==0 and load_image(restored).shape==(1,3,64,64) and Image.open(sheet).width > 900

def test_the_record_makes_the_picture_again(tmp_path, faces64):
    from gen2res.restore import damaged_astronaut, restore
    from gen2res.images import to_array
    run('restore', 'astronaut', '-o', tmp_path, '--K', 20, '--seed', 3)
    text = Image.open(tmp_path/'astronaut_restored.png').text
    r = json.loads(text['gen2res'])
    again = restore(damaged_astronaut()[0], faces64, r['K'], r['steps'], seeds=[r['seed']])
    assert 'generative model' in text['Comment'] and (to_array(again)==to_array(load_image(tmp_path/'astronaut_restored.png'))).all()

def test_K_by_the_photo(tmp_path):
    assert run('restore', 'astronaut', '-o', tmp_path, '--K', 'auto')[0]==0
    [K] = (about := json.loads((tmp_path/'astronaut_restored.json').read_text())['gen2res'])['chosen']
    assert about['K']=='auto' and 10 < K < 52
    code,out,_ = run('again', tmp_path/'astronaut_restored.png', 'astronaut'); assert code==0 and 'pixel by pixel' in out
    for wrong in ('otto', '1001', '-1', '2.5'):
        code,_,err = run('restore', 'astronaut', '-o', tmp_path/'no', '--K', wrong)
        assert code and f'--K must lie in 0..1000, or be the word auto; got {wrong}' in err and not (tmp_path/'no').exists()

@pytest.fixture
def folder(tmp_path):
    d = tmp_path/'in'; d.mkdir()
    save_image(astronaut(128), d/'good.jpg'); save_image(astronaut(80), d/'also.png')
    (d/'broken.png').write_bytes((d/'also.png').read_bytes()[:200]); (d/'empty.jpg').touch(); save_image(astronaut(1), d/'dot.png')
    return d

def test_a_broken_file_does_not_stop_the_others(folder, tmp_path):
    code,out,err = run('restore', folder, tmp_path/'missing.jpg', '-o', tmp_path/'out', '--K', 3)
    assert code==2 and {p.name for p in (tmp_path/'out').iterdir()}=={f'{n}_{e}' for n in ('good', 'also') for e in ('restored.png', 'sheet.png', 'restored.json')}
    lines = [l for l in err.split('\n') if l.startswith('failed:')]
    assert len(lines)==4 and all(any(n in l for l in lines) for n in ('broken.png', 'empty.jpg', 'dot.png', 'missing.jpg'))

def test_company_and_order_do_not_matter(folder, tmp_path):
    run('restore', folder, '-o', tmp_path/'all', '--K', 5); run('restore', folder/'good.jpg', '-o', tmp_path/'one', '--K', 5)
    assert (tmp_path/'all'/'good_restored.png').read_bytes()==(tmp_path/'one'/'good_restored.png').read_bytes()

def test_nothing_is_overwritten_without_force(folder, tmp_path):
    args = ('restore', folder/'good.jpg', '-o', tmp_path/'out', '--K', 2)
    assert run(*args)[0]==0
    stamp = (tmp_path/'out'/'good_restored.png').read_bytes()
    code,_,err = run(*args, '--seed', 1)
    assert code==2 and '--force' in err and (tmp_path/'out'/'good_restored.png').read_bytes()==stamp
    assert run(*args, '--seed', 1, '--force')[0]==0 and (tmp_path/'out'/'good_restored.png').read_bytes()!=stamp

def test_two_inputs_of_one_name(folder, tmp_path):
    (folder/'more').mkdir(); save_image(astronaut(64), folder/'good.png'); save_image(astronaut(64), folder/'more'/'good.png')
    code,_,err = run('restore', folder/'good.jpg', folder/'good.png', folder/'more'/'good.png', '-o', tmp_path/'out', '--K', 1)
    assert code==2 and err.strip().endswith(f'{folder}/more/good.png: another photo of this call has the same name; restore it into another folder')
    assert {p.name for p in (tmp_path/'out').glob('*_restored.*')}=={f'{name}_restored.{end}' for name in ('good', 'good.png') for end in ('png', 'json')}

@pytest.mark.parametrize('args', [('--K', '1001'), ('--K', '-1'), ('--prior', 'nobody'), ('--prior', 'missing.pt'), ('--steps', 'many'), ('--device', 'abacus')])
def test_wrong_arguments_are_one_line(args, tmp_path):
    code,_,err = run('restore', 'astronaut', '-o', tmp_path, *args)
    assert code==2 and len(err.strip().split('\n'))==1 and not list(tmp_path.iterdir())

def test_empty_folder_says_so(tmp_path):
    (tmp_path/'in').mkdir()
    code,_,err = run('restore', tmp_path/'in', '-o', tmp_path/'out')
    assert code==2 and 'no pictures' in err

def test_info_lists_every_prior():
    from gen2res.prior import PRIORS
    code,out,_ = run('info')
    assert code==0 and all(n in out for n in PRIORS) and 'shipped' in out and 'non-commercial' in out

@pytest.mark.parametrize('name', [c.name or c.callback.__name__ for c in app.registered_commands])
def test_help_has_an_example(name):
    code,out,_ = run(name, '--help')
    assert code==0 and f'Example: gen2res {name}' in out

def test_train_from_the_command_line(tmp_path):
    d = tmp_path/'pics'; d.mkdir()
    for i in range(4): save_image(astronaut(32).roll(i, -1), d/f'{i}.png')
    code,out,err = run('train', d, '-o', tmp_path/'run', '--side', 32, '--iters', 2, '--batch', 2, '--device', 'cpu')
    assert code==0, err
    code,out,err = run('restore', 'astronaut', '-o', tmp_path/'out', '--prior', tmp_path/'run'/'prior', '--K', 2)
    assert code==0, err

def test_train_on_nothing(tmp_path):
    code,_,err = run('train', tmp_path, '-o', tmp_path/'run')
    assert code==2 and 'no pictures' in err

def test_as_a_process_from_anywhere(tmp_path):
    r = subprocess.run([sys.executable, '-m', 'gen2res.cli', 'restore', 'astronaut', '--K', '2', '-o', 'out'], cwd=tmp_path, capture_output=True, text=True)
    assert r.returncode==0 and r.stdout.split()==['out/astronaut_restored.png', 'out/astronaut_sheet.png'] and (tmp_path/'out'/'astronaut_sheet.png').exists()

def test_out_is_a_file(tmp_path):
    (tmp_path/'out').touch()
    code,_,err = run('restore', 'astronaut', '-o', tmp_path/'out')
    assert code==2 and 'is a file, and results want a folder' in err

def test_odd_file_names_do_not_stop_the_batch(tmp_path):
    import os
    d = tmp_path/'in'; d.mkdir(); save_image(astronaut(64), d/'z.png')
    name = os.fsencode(d)+b'/caf\xe9.png'
    with open(name, 'wb') as f: f.write((d/'z.png').read_bytes())
    code,out,err = run('restore', d, '-o', tmp_path/'out', '--K', 1)
    assert code==0 and len(list((tmp_path/'out').iterdir()))==6

@pytest.mark.parametrize('args', [('--side', 30), ('--patch', 3), ('--batch', 0), ('--device', 'abacus'), ('--iters', 0)])
def test_train_refuses_in_one_line(tmp_path, args):
    d = tmp_path/'pics'; d.mkdir(); save_image(astronaut(32), d/'a.png')
    code,_,err = run('train', d, '-o', tmp_path/'run', '--side', 32, '--iters', 1, *args)
    assert code==2 and len(err.strip().split('\n'))==1, err

def test_album_tune_restore(tmp_path, monkeypatch):
    "The whole way of one photo, in the shortest of runs."
    save_image(damaged_face(), tmp_path/'her.png')
    code,out,err = run('album', tmp_path/'her.png', '-o', tmp_path/'albums', '--n', 2, '--steps', 4)
    assert code==0 and len(list((tmp_path/'albums'/'her').iterdir()))==2 and (tmp_path/'albums'/'her_sheet.png').exists()
    monkeypatch.setattr(tune, 'dreams', partial(tune.dreams, steps=2))
    code,out,err = run('tune', tmp_path/'albums'/'her', '-o', tmp_path/'her.safetensors', '--iters', 2, '--lora', 1, '--sheet', tmp_path/'dreams.png')
    with Image.open(tmp_path/'dreams.png') as im: assert im.width<im.height and 'Made up' in im.text['Comment']      # three rows of two
    assert code==0 and 'only 2 different pictures' in err and (tmp_path/'her.safetensors').stat().st_size < 1e6 and not (tmp_path/'her.state').exists()
    code,out,err = run('tune', tmp_path/'albums'/'her', '-o', tmp_path/'her.safetensors', '--iters', 2)
    assert code==2 and '--force' in err
    assert run('tune', tmp_path/'albums'/'her', '-o', tmp_path/'her.pt')[2].strip().endswith('must end in .safetensors')
    run('album', tmp_path/'her.png', '-o', tmp_path/'albums', '--n', 1, '--steps', 4); assert len(list((tmp_path/'albums'/'her').iterdir()))==1
    (tmp_path/'mine').mkdir(); save_image(astronaut(64), tmp_path/'mine'/'her_sheet.png'); hers = (tmp_path/'mine'/'her_sheet.png').read_bytes()
    code,_,err = run('album', tmp_path/'her.png', '-o', tmp_path/'mine', '--n', 1, '--steps', 4); assert code==2, err
    assert (tmp_path/'mine'/'her_sheet.png').read_bytes()==hers and len([*(tmp_path/'mine').iterdir()])==1                    # a photo of the user's
    code,_,err = run('album', tmp_path/'her.png', '-o', tmp_path/'her.png'/'x', '--n', 1, '--steps', 4); assert code==2 and 'is a file' in err and len(err.strip().splitlines())==1
    code,_,err = run('restore', tmp_path/'her.png', '-o', tmp_path/'o', '--K', 5, '--person', tmp_path/'her.safetensors', '--prior', 'faces128'); assert code==2 and 'belongs to faces64' in err and '(--prior)' in err
    ways = [('--person', tmp_path/'her.safetensors'), ('--recipe', 'pseudo'), ('--samples', 2), ('--album', tmp_path/'albums'/'her', '--recipe', 'closed-form')]
    for i,args in enumerate(ways):
        assert run('restore', tmp_path/'her.png', '-o', tmp_path/f'out{i}', '--K', 5, *args)[0]==0, args
    pictures = [(tmp_path/f'out{i}'/'her_restored.png').read_bytes() for i in range(4)]
    assert len(set(pictures))==4

def damaged_face():
    from gen2res.restore import damaged_astronaut
    return damaged_astronaut()[0]

@pytest.mark.parametrize('args,line', [(('--recipe', 'magic'), 'unknown recipe'), (('--person', 'none.safetensors'), 'no such file'), (('--recipe', 'personal'), 'say --album DIR'), (('--album', 'nowhere'), 'nowhere'),
                                       (('--generative', 2, '--recipe', 'ilvr'), 'exclude each other'), (('--recipe', 'closed-form'), 'needs --album'), (('--tuning', 'slow'), 'no tuning'), (('--tuning', 'fast'), 'is for --generative and --album'), (('--square', '--face', '1'), '--square takes the best face'), (('--face', '7'), 'the example is one square'), (('--restorer', 'none'), 'nothing is restored'), (('--restorer', 'swinir64', '--side', 50), 'multiple of 4'), (('--device', 'cuda:99'), 'cuda:99: no such device here')])
def test_restore_options_in_one_line(args, line, tmp_path):
    code,_,err = run('restore', 'astronaut', '-o', tmp_path, *args)
    assert code==2 and line in err and len(err.strip().split('\n'))==1 and not list(tmp_path.iterdir())

def test_again_of_the_example_and_where_it_may_not_write(tmp_path):
    assert run('restore', 'astronaut', '-o', tmp_path/'o', '--steps', 2)[0]==0; made = tmp_path/'o'/'astronaut_restored.png'
    code,out,_ = run('again', made, 'astronaut'); assert code==0 and 'the same, pixel by pixel' in out
    for out in (tmp_path, made): code,_,err = run('again', made, 'astronaut', '-o', out); assert code==2 and ('is a folder' in err or 'exists already' in err)

@pytest.mark.parametrize('command', ['restore', 'faces', 'album', 'degrade'])
def test_an_empty_name_is_not_this_folder(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); save_image(astronaut(64), 'her.png')
    code,_,err = run(command, '', '-o', 'out'); assert code==2 and 'a file without a name' in err and not Path('out').exists()

def test_no_command_takes_an_empty_path_for_this_folder(tmp_path):
    for args in (['tune', '', '-o', 'x.safetensors'], ['restore', 'astronaut', '--album', '']):
        r = subprocess.run(['gen2res', *args], cwd=tmp_path, capture_output=True, text=True); assert r.returncode==2 and r.stderr=='gen2res: one of the arguments is empty\n'

def test_again_of_a_whole_photo_is_not_the_example(tmp_path):
    save_image(astronaut(), tmp_path/'her.png'); assert run('restore', tmp_path/'her.png', '-o', tmp_path/'o', '--K', 2)[0]==0
    code,_,err = run('again', tmp_path/'o'/'her_restored.png', 'astronaut'); assert code==2 and 'astronaut' in err and len(err.strip().split('\n'))==1

@pytest.mark.parametrize('args,line', [
    (('restore', 'nowhere.jpg'), 'nowhere.jpg: no such file'), (('bench', 'sides', '--data', 'd', '--device', 'cpu'), 'sides takes no --prior, --device or --methods'),
    (('bench', 'claim-K', '--data', 'd', '--shape', 'gen2res-256'), 'no --shape'), (('explore', 'astronaut', '--recipe', 'closed-form'), 'needs an album'),
    (('restore', 'astronaut', '--prior', '../nowhere'), 'neither a file nor a known prior'), (('compare', 'x', '--device', 'xpu:99'), 'xpu:99: no such device here')])
def test_refused_in_one_line_before_any_work(args, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path); code,_,err = run(*args)
    assert code==2 and line in err and len(err.strip().split('\n'))==1 and not list(tmp_path.iterdir())

def test_a_folder_may_have_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for d in ('K=50', 'gt'): save_image(astronaut(32), f'{d}/a.png')
    code,out,err = run('compare', 'K=50', 'mine=K=50', '--gt', 'gt'); assert code==0 and '| K=50 |' in out and '| mine |' in out, err

def test_explore_replaces_nothing_of_anybody(tmp_path):
    mine = save_image(astronaut(32), tmp_path/'astronaut_K_pictures.png'); before = mine.read_bytes()
    code,_,err = run('explore', 'astronaut', '-o', tmp_path); assert code==2 and 'astronaut_K_pictures.png: exists already' in err and mine.read_bytes()==before

def test_a_tuning_killed_while_it_draws_goes_on(tmp_path, monkeypatch):
    for i in range(3): save_image(astronaut(64).roll(9*i, -1), tmp_path/'her'/f'{i}.png')
    args = ('tune', tmp_path/'her', '-o', tmp_path/'her.safetensors', '--iters', 1, '--sheet', tmp_path/'dreams.png')
    with monkeypatch.context() as m:
        m.setattr('gen2res.tune.dreams', lambda *a, **kw: (_ for _ in ()).throw(KeyboardInterrupt()))
        CliRunner().invoke(app, [str(a) for a in args])
    code,_,err = run(*args); assert code==0 and (tmp_path/'dreams.png').exists() and not (tmp_path/'her.state').exists(), err

def test_two_marked_photos_of_one_name(tmp_path):
    for d in 'ab': save_image(astronaut(64), tmp_path/d/'her.png')
    code,out,err = run('faces', tmp_path/'a'/'her.png', tmp_path/'b'/'her.png', '-o', tmp_path/'o', '--force')
    assert code==2 and err.count('failed')==1 and 'another photo of this call has the same name' in err

@pytest.mark.parametrize('how,recipe', [(('--album', 'album'), 'personal'), (('--generative', 2), 'generative')])
def test_an_album_tunes_the_prior_that_restores(tmp_path, monkeypatch, how, recipe):
    from gen2res import restore, tune
    monkeypatch.chdir(tmp_path); [monkeypatch.setitem(tune.PRESETS, k, dict(iters=2, batch=1, lr=1e-3)) for k in ('fast', 'all-levels')]
    real = restore.generative_album; monkeypatch.setattr(restore, 'generative_album', lambda *a, **kw: real(*a, **kw | dict(steps=4, every=2)))
    save_image(damaged_face(), 'her.png'); save_image(astronaut(80), 'album/a.png'); save_image(astronaut(90).flip(-1), 'album/b.png')
    for out,options in (('free', ()), ('held', how)): code,_,err = run('restore', 'her.png', '-o', out, '--K', 5, *options); assert code==0, err
    about = restore.read_record('held/her_restored.png')
    assert about['recipe']==recipe and about['tuning']['iters']==2 and Path('held/her_restored.png').read_bytes()!=Path('free/her_restored.png').read_bytes()
    assert len(list(Path('held').iterdir()))==3                                          # nothing of an album stays

def test_a_killed_restore_leaves_no_trace_once_it_is_done(tmp_path, monkeypatch):
    from gen2res import tune
    monkeypatch.setitem(tune.PRESETS, 'fast', dict(iters=2, batch=1, lr=1e-4))
    monkeypatch.setattr('gen2res.restore.generative_album', lambda y, *a, folder, **kw: save_image(y, folder/'album_0000.png') and y)
    seen,real = [],tune.Tuner.run
    monkeypatch.setattr(tune.Tuner, 'run', lambda self, *a: seen.append(self.out.exists()) or real(self, *a))
    code,out,err = run('restore', 'astronaut', '-o', tmp_path/'o', '--steps', 2, '--generative', 1)
    assert code==0 and seen==[True] and len(list((tmp_path/'o').iterdir()))==3, err

def test_times_say_what_they_were_taken_on(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('gen2res.bench').bench.BENCHES, 'loop', lambda p: [f'{p.side} pixels'])
    code,out,err = run('bench', 'loop', '--device', 'cpu', '-o', tmp_path/'loop.txt'); assert code==0, err
    first,second = (tmp_path/'loop.txt').read_text().splitlines()
    assert out.splitlines()==[first, second] and first.startswith('loop: ') and 'threads' in first and f'torch {torch.__version__}' in first and 'commit' in first and second=='64 pixels'
    code,out,err = run('bench', 'loop', '--device', 'cpu', '-o', tmp_path/'loop.txt'); assert code==2 and 'exists already' in err

def test_a_kill_between_two_photos_leaves_nothing_in_the_end(tmp_path, monkeypatch):
    from gen2res import tune
    for i in range(2): save_image(astronaut(64).roll(i, 3), tmp_path/f'{i}.png')
    monkeypatch.setitem(tune.PRESETS, 'fast', dict(iters=2, batch=1, lr=1e-4))
    monkeypatch.setattr('gen2res.restore.generative_album', lambda y, *a, folder, **kw: save_image(y, folder/'album_0000.png') and y)
    real,unfinished = tune.Tuner.run,tmp_path/'o'/'.gen2res-unfinished'
    def killed(self, *a):
        assert len(list(unfinished.iterdir()))==1                                # the first photo's work has gone
        if (tmp_path/'o'/'0_restored.png').exists(): raise KeyboardInterrupt
        return real(self, *a)
    restore = lambda: run('restore', tmp_path/'0.png', tmp_path/'1.png', '-o', tmp_path/'o', '--steps', 2, '--generative', 1)
    with monkeypatch.context() as m:
        m.setattr(tune.Tuner, 'run', killed); restore()
    assert unfinished.exists() and not (tmp_path/'o'/'1_restored.png').exists()
    code,out,err = restore()
    assert code==2 and '0_restored.png: exists already' in err and (tmp_path/'o'/'1_restored.png').exists() and not unfinished.exists() and 'not finished' not in err
    (unfinished/'other').mkdir(parents=True); err = run('restore', tmp_path/'0.png', '-o', tmp_path/'o', '--steps', 2, '--force')[2]
    assert f'{unfinished} holds albums of faces from other calls' in err

def test_made_again(tmp_path):
    save_image(astronaut(64), tmp_path/'her.png'); save_image(astronaut(64).flip(-1), tmp_path/'other.png')
    run('restore', tmp_path/'her.png', '-o', tmp_path/'o', '-k', 8, '--seed', 3, '--device', 'cpu'); made = tmp_path/'o'/'her_restored.png'
    code,out,err = run('again', made, tmp_path/'her.png', '-o', tmp_path/'b.png', '--device', 'cpu')
    assert code==0 and 'the same' in out and (tmp_path/'b.png').read_bytes()==made.read_bytes(), err           # with its record
    code,out,err = run('again', made, tmp_path/'other.png', '--device', 'cpu'); assert code==2 and 'is not the file her that was restored' in err
    code,out,err = run('again', tmp_path/'her.png', tmp_path/'her.png'); assert code==2 and 'no record' in err
    run('restore', tmp_path/'her.png', '-o', tmp_path/'once', '--restorer', 'swinir64', '--device', 'cpu'); once = tmp_path/'once'/'her_restored.png'
    assert run('again', once, tmp_path/'her.png', '--device', 'cpu')[0]==0                                 # made in one pass
    code,out,err = run('again', once, tmp_path/'her.png', '--restorer', 'identity', '--device', 'cpu'); assert code==2 and 'made in one pass by swinir64' in err and len(err.strip().split('\n'))==1
    assert "compositeWithTrainedAlgorithmicMedia" in Image.open(made).text["XML:com.adobe.xmp"]

# -- restorers ----------------------------------------------------------------

@pytest.fixture
def restorer(tmp_path):
    from gen2res.restorers import save_restorer, small_swinir
    torch.manual_seed(0)
    return save_restorer(small_swinir(64, width=12, depths=(2,), heads=2), tmp_path/'r.safetensors')

def test_one_pass_without_a_prior(tmp_path, restorer, monkeypatch):
    from gen2res.restorers import load_restorer
    from gen2res.restore import damaged_astronaut, read_record
    from gen2res.images import to_array
    monkeypatch.setattr('gen2res.prior.load_prior', lambda *a: pytest.fail('a prior was loaded'))
    code,out,err = run('restore', 'astronaut', '--restorer', restorer, '-o', tmp_path/'o', '--device', 'cpu')
    about = read_record(tmp_path/'o'/'astronaut_restored.png')
    assert code==0 and about['recipe']=='one pass' and len(about['weights'])==12, err
    assert (to_array(load_restorer(restorer, 'cpu')(damaged_astronaut()[0]))==to_array(load_image(tmp_path/'o'/'astronaut_restored.png'))).all()

@pytest.mark.parametrize('options,say', [(('--K', 20), 'works in one pass'), (('--recipe', 'ilvr'), 'works in one pass'), (('--samples', 2), 'works in one pass'), (('--fidelity', .5), 'number of CodeFormer')])
def test_one_pass_refuses(tmp_path, restorer, options, say):
    code,_,err = run('restore', 'astronaut', '--restorer', restorer, '-o', tmp_path, *options)
    assert code==2 and say in err

def test_targets_then_tuning(tmp_path, restorer):
    for i in range(2): save_image(astronaut(64), tmp_path/'lq'/f'{i}.png')
    code,out,err = run('targets', tmp_path/'lq', '-o', tmp_path/'t', '-r', restorer, '--K', 8, '--N', 4, '--device', 'cpu')
    assert code==0 and '2 targets' in out and json.loads((tmp_path/'t'/'targets.json').read_text())['1']['N']==4, err
    code,out,err = run('tune-restorer', tmp_path/'lq', tmp_path/'t', '-r', restorer, '--iters', 1, '--batch', 1, '-w', tmp_path/'w', '-o', tmp_path/'a.safetensors', '--device', 'cpu')
    assert code==0 and (tmp_path/'a.safetensors').exists() and (tmp_path/'w'/'preview_000001.png').exists() and 'the GAN loss is left out' in err, err
    assert {'it', 'l1 loss', 'pd64 loss'} <= {*json.loads((tmp_path/'w'/'log.jsonl').read_text())}
    again = run('tune-restorer', tmp_path/'lq', tmp_path/'t', '-r', restorer, '-o', tmp_path/'a.safetensors')
    assert again[0]==2 and '--force replaces it' in again[2]

def test_adapt(tmp_path, restorer):
    for i in range(2): save_image(astronaut(64), tmp_path/'lq'/f'{i}.png')
    code,out,err = run('adapt', '--lq', tmp_path/'lq', '-r', restorer, '--real', tmp_path/'lq', '--K', 8, '--iters', 1, '--batch', 2, '-w', tmp_path/'w', '-o', tmp_path/'a.safetensors', '--device', 'cpu')
    assert code==0 and len(list((tmp_path/'w'/'targets').glob('*.png')))==2 and 'note: K = 8 is not above L = 61' in err and 'GAN' not in err, err
    code,out,err = run('restore', 'astronaut', '--restorer', tmp_path/'a.safetensors', '-o', tmp_path/'o', '--device', 'cpu'); assert code==0, err
    (tmp_path/'afile').write_bytes(b''); code,_,err = run('adapt', '--lq', tmp_path/'lq', '-r', restorer, '-w', tmp_path/'v', '-o', tmp_path/'afile'/'a.safetensors')
    assert code==2 and 'afile' in err and not (tmp_path/'v').exists()                        # before the work, not after it

@pytest.mark.parametrize('args,say', [(('targets', 'nowhere'), 'nowhere'), (('targets', '.', '-r', 'nobody'), 'no such restorer'), (('tune-restorer', '.', '.', '-r', 'none'), 'nothing to tune'),
                                      (('adapt', '--lq', '.', '-r', 'none'), 'nothing to tune'), (('tune-restorer', '.', '.', '-r', 'swinir64', '--preset', 'x'), 'no preset')])
def test_restorer_commands_in_one_line(tmp_path, args, say, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code,_,err = run(*args)
    assert code==2 and say in err and len(err.strip().splitlines())==1

def test_explore(tmp_path, monkeypatch):
    from gen2res import explore
    from gen2res.explore import read_rows
    class Short(explore.Lab):
        def __init__(self, *a, **kw): super().__init__(*a, **kw); self.Ks = (0, 5, 20)
    monkeypatch.setattr(explore, 'Lab', Short)
    code,out,_ = run('explore', 'astronaut', '-o', tmp_path/'o', '--seeds', 2, '--steps', 2)
    files = [Path(l) for l in out.split('\n') if l]
    assert code==0 and [f.name for f in files]==['astronaut_K.csv','astronaut_K.png','astronaut_K.svg','astronaut_K_pictures.png']
    rows = read_rows(files[0]); assert len(rows)==6 and {'K','seed','psnr','ids64','spectrum'}==set(rows[0])
    assert rows[0]['psnr']==rows[3]['psnr'] and rows[2]['psnr']!=rows[5]['psnr']          # K = 0 is the photo, whatever the seed
    code,_,err = run('explore', 'astronaut', '-o', tmp_path/'o'); assert code==2 and '--force' in err
    save_image(astronaut(128), tmp_path/'a.png')
    code,out,_ = run('explore', tmp_path/'a.png', '-o', tmp_path/'o', '--seeds', 1, '--steps', 2); assert code==0
    assert 'fine detail, dB' in read_rows(tmp_path/'o'/'a_K.csv')[0]                       # nobody knows the truth of this one
    code,_,err = run('explore', tmp_path/'no.png', '-o', tmp_path/'o'); assert code==2 and 'no such file' in err

def test_bench_engines_say_what_they_need(tmp_path):
    for args,word in ((['--engine', 'slurm'], 'local, dask'), (['--engine', 'dask'], '--scheduler'), (['--scheduler', 'tcp://h:1'], '--engine dask')):
        code,_,err = run('bench', 'claim-K', '--data', tmp_path, *args); assert code==2 and word in err and len(err.strip().split('\n'))==1

def test_bench_says_what_cannot_be():
    for args,said in ((('identity', '--engine', 'dask', '--scheduler', 'tcp://127.0.0.1:1'), 'runs here'), (('loop', '--engine', 'dask', '--scheduler', 'tcp://127.0.0.1:1'), 'runs here'),
                      (('claim-K', '--engine', 'dask', '--scheduler', 'garbage'), 'not the address'), (('claim-K', '--engine', 'dask', '--scheduler', 'tls://127.0.0.1:1'), '--tls-cert')):
        code,_,err = run('bench', *args); assert code==2 and said in err and err.count('\n')==1

def test_mistakes_are_found_before_the_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'her.state').mkdir(); (tmp_path/'her.state/log.jsonl').write_text('{"it": 100}\n'); (tmp_path/'her.state/.state.pt.x.tmp').touch(); (tmp_path/'album').mkdir(); save_image(astronaut(80), tmp_path/'album'/'a.png')
    code,_,err = run('tune', tmp_path/'album', '-o', 'her.safetensors', '--iters', 1); assert code==0, err                # killed before it had begun
    code,_,err = run('adapt', '--lq', 'album', '--real', 'nowhere', '-o', 'a.safetensors', '--iters', 1); assert code==2 and 'nowhere' in err and not Path('adapting/targets').exists()
    code,_,err = run('restore', 'album', '--person', 'album'); assert code==2 and 'use --album' in err
    code,_,err = run('compare', 'x/results', 'y/results', '--gt', 'album'); assert code==2 and 'NAME=FOLDER' in err
    code,_,err = run('bench', 'loop', '--prior', 'nobody'); assert code==2 and err.count('\n')==1
    monkeypatch.setattr('gen2res.cli.find_spec', lambda name: None)
    code,_,err = run('tune', tmp_path/'album', '--lora', 4); assert code==2 and 'gen2res[lora]' in err

def test_what_should_be_noted(tmp_path):
    save_image(astronaut(20), tmp_path/'tiny.png')
    code,_,err = run('restore', tmp_path/'tiny.png', '-o', tmp_path/'o', '--K', 200, '--steps', 2); assert code==0 and 'most of a face is invented' in err
    from skimage.data import grass
    Image.fromarray(grass()).convert('RGB').resize((40, 40)).save(tmp_path/'grass.png')
    code,_,err = run('restore', tmp_path/'grass.png', '-o', tmp_path/'o', '--steps', 2); assert code==0 and 'no face found; all of it is restored as one' in err
