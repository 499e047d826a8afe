"""User code is looked at without being executed, and what goes wrong in it is told with its file and line."""

import json
import pickle
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch

from tests.unit.trainer.contract.test_ablation import problems, request
from trainer.contract import Code, Mask, RunSpec
from trainer.data import batches
from trainer.data.batches import slices, split_of
from trainer.data.manifest import open_images
from trainer.data.usermasks import UserMask
from trainer.evaluation.mask_points import mask_points
from trainer.method.draws import Drawn, View, mask_noise
from trainer.method.grid import step_plan
from trainer.method.masks import shaped_noise
from trainer.resolve import check_and_resolve
from trainer.teachers import build
from trainer.teachers.comparing import user_comparison
from trainer.usercode.loading import UserCodeError, UserFunction
from trainer.usercode.reading import LOSS, MASK, UnusableCode, check

GOOD = "def mask(noise, side, num_visible, landmarks):\n    return noise\n"
LANDMARKS = None
ROOT = Path(__file__).parents[4]


def written(file: Path, text: str) -> Path:
    file.write_text(dedent(text))
    return file


def user_mask(file: Path, text: str) -> UserMask:
    return UserMask(Mask(kind="code", code=Code(uri=str(written(file, text)))))


def scores(mask: UserMask, count: int = 3) -> np.ndarray:
    noise_BL = mask_noise(0, Drawn(np.zeros(count, int), np.arange(count)), View.ONLINE, 64)
    return mask.scores(noise_BL, 8, 16, [LANDMARKS] * count)


def runs(tiny_run: RunSpec, **teacher: object) -> RunSpec:
    asked = tiny_run.model_dump()
    return RunSpec.model_validate({**asked, "teacher": {**asked["teacher"], **teacher}})


# ---------------------------------------------------------------- looked at, not executed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\ndef mask(noise side):\n", "mask.py, line 2: SyntaxError"),
        (
            "def musk(noise, side, num_visible, landmarks): ...",
            "mask.py defines no function mask; expected is def mask(",
        ),
        ("\ndef mask(noise): ...", "mask.py, line 2: mask is called as def mask(noise, side, num_visible, landmarks)"),
        ("def mask(a, b, c, d, e): ...", "mask.py, line 1: mask is called as"),
        ("def mask(*a, b): ...", "mask.py, line 1: mask is called as"),
        ("def mask(noise, side, num_visible, landmarks): ...\nreturn 5", "mask.py, line 2: SyntaxError"),
        ("\0", "mask.py"),
        ("(" * 10_000, "mask.py"),
    ],
)
def test_what_cannot_be_the_code_is_told_with_its_line(text: str, words: str) -> None:
    with pytest.raises(UnusableCode) as refused:
        check(text.encode(), "mask.py", MASK)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        GOOD, "def mask(*a): ...", "def mask(noise, side, num_visible, landmarks, more=1): ...",
        "from masks import eyes as mask", "mask = lambda *a: a[0]", "if True:\n    def mask(a, b, c, d): ...",
    ],
)  # fmt: skip
def test_what_may_be_the_code_is_let_through(text: str) -> None:
    check(text.encode(), "mask.py", MASK)


def test_a_submission_digests_the_code_and_executes_nothing(tiny_faces: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "eyes.py", f"open({str(tmp_path / 'executed')!r}, 'w')\n{GOOD}")
    loss = written(tmp_path / "loss.py", "1 / 0\ndef feature_loss(predicted, wanted): ...")
    teacher = written(tmp_path / "net.py", "1 / 0\ndef teacher(): ...")
    asked = request(
        tiny_faces, factors={"mask": ["random", {"kind": "code", "code": str(file)}]},
        base={"teacher": {"source": "random", "arch": "code", "code": str(teacher), "loss": str(loss)}},
    )  # fmt: skip
    arms = check_and_resolve(asked).arms
    assert [arm.name for arm in arms] == ["mask=random", "mask=eyes"]
    before = arms[1].runs[0]
    assert all(code and code.sha256 for code in (before.mask.code, before.teacher.code, before.teacher.loss))
    assert not (tmp_path / "executed").exists()
    for changed in file, loss, teacher:
        changed.write_text(changed.read_text() + "\n# changed")
        after = check_and_resolve(asked).arms[1].runs[0]
        assert after.digest != before.digest
        before = after


def test_contents_of_the_code_make_the_run_and_not_where_they_are() -> None:
    def digest(field: str, uri: str, sha256: str | None) -> str:
        code = {"uri": uri, "sha256": sha256}
        mask: dict[str, object] = {"kind": "code", "code": code}
        asked = {
            "mask": {"mask": mask}, "target": {"contrastive": {"target_mask": mask}},
            "teacher": {"teacher": {"source": "random", "arch": "code", "code": code}},
            "loss": {"teacher": {"source": "random", "loss": code}},
        }[field]  # fmt: skip
        return RunSpec.model_validate({"data": {"uri": "/data"}, "teacher": "none", **asked}).digest

    for field in "mask", "target", "teacher", "loss":
        assert digest(field, "/a.py", "a" * 64) == digest(field, "s3://there/b.py", "a" * 64)
        assert digest(field, "/a.py", "a" * 64) != digest(field, "/a.py", "b" * 64)
        assert digest(field, "/a.py", None) != digest(field, "/b.py", None)


def test_code_that_cannot_be_used_is_refused_on_submission_all_at_once(tiny_faces: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "loss.py", "def feature_loss(predicted, wanted:\n")
    known = written(tmp_path / "known.py", GOOD)
    mask = {"kind": "code", "code": str(tmp_path / "none.py")}
    target = {"kind": "code", "code": {"uri": str(known), "sha256": "0" * 64}}
    teacher = {"source": "random", "loss": str(file), "code": "relative.py", "normalise": "channels"}
    base = {"mask": mask, "teacher": teacher, "contrastive": {"target_mask": target}}
    told = problems(request(tiny_faces, base=base, factors={}))
    assert "user code that can be used" in told["mask.code"]
    assert "loss.py, line 1: SyntaxError" in told["teacher.loss"]
    assert "user code with arch code only" in told["teacher.code"]
    assert "one of the two" in told["teacher.normalise"]
    assert "the digest of" in told["contrastive.target_mask.code.sha256"]


@pytest.mark.parametrize(
    ("base", "field"),
    [
        ({"mask": "code"}, "mask.code"),
        ({"mask": {"kind": "block", "code": "/mask.py"}}, "mask.code"),
        ({"teacher": {"source": "random", "arch": "code"}}, "teacher.code"),
        ({"teacher": {"source": "run:abc", "arch": "code", "code": "/t.py"}}, "teacher.arch"),
        ({"teacher": {"source": "none", "loss": "/loss.py"}}, "teacher.loss"),
    ],
)
def test_code_without_its_kind_and_a_kind_without_its_code_are_refused(
    tiny_faces: Path, base: dict[str, object], field: str
) -> None:
    assert field in problems(request(tiny_faces, base=base, factors={}))


def test_where_user_code_is_not_allowed_it_is_not_even_read(tiny_faces: Path) -> None:
    asked = request(tiny_faces, base={"mask": {"kind": "code", "code": "/nowhere/mask.py"}}, factors={})
    with pytest.raises(
        ValueError, match=r"mask.code: asked for user code, which is not allowed here; possible: ask her"
    ):
        check_and_resolve(asked, no_user_code="ask her")


def test_the_example_of_the_page_is_the_file_and_can_be_used() -> None:
    text = (ROOT / "examples/user_code/centre.py").read_text()
    assert f"```python\n{text}```" in (ROOT / "docs/user-code.md").read_text()
    mask = UserMask(Mask(kind="code", code=Code(uri=str(ROOT / "examples/user_code/centre.py"))))
    score_BL = scores(mask, 400).reshape(-1, 8, 8)
    assert score_BL[:, 3:5, 3:5].mean() > score_BL[:, 0].mean() + 0.2, "the middle is hidden first"


# ---------------------------------------------------------------- executed, in workers


def test_scores_decide_and_noise_breaks_their_ties(tmp_path: Path) -> None:
    text = """
        import numpy as np
        def mask(noise, side, num_visible, landmarks):
            noise[:] = 0  # its own copy
            return np.repeat([1, 0], 32)
        """
    mask, drawn = user_mask(tmp_path / "mask.py", text), Drawn(np.zeros(50, int), np.arange(50))
    noise_BL = shaped_noise(
        Mask(kind="code", code=Code(uri="/m.py")), 16, 0, drawn, View.ONLINE, 64, None,
        lambda noise_BL: mask.scores(noise_BL, 8, 16, [LANDMARKS] * 50),
    )  # fmt: skip
    visible_BL = noise_BL < 16
    assert (visible_BL.sum(axis=1) == 16).all()
    assert not visible_BL[:, :32].any()
    assert visible_BL[:, 32:].any(axis=0).all(), "of equal scores a random choice"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 1 / 0", "mask.py, line 2, in mask: ZeroDivisionError: division by zero"),
        ("return noise[:3]", "mask.py, in mask: it returned float32 of shape [3]; possible: 64 numbers, one a patch"),
        ("return None", "mask.py, in mask: it returned object of shape []; possible: 64 numbers"),
        ("return noise * float('nan')", "mask.py, in mask: 64 of its 64 scores are NaN or infinite"),
        ("return noise + float('inf')", "mask.py, in mask: 64 of its 64 scores are NaN or infinite"),
        ("import numpy as np; return np.random.rand(64)", "mask.py, in mask: called twice with the same arguments"),
        ("return [[1], [1, 2]]", "mask.py: ValueError: setting an array element"),
        ("import sys; sys.exit(3)", "mask.py, line 2, in mask: SystemExit: 3"),
        ("raise KeyboardInterrupt", "mask.py, line 2, in mask: KeyboardInterrupt"),
        ("raise ValueError('out of memory slots')", "mask.py, line 2, in mask: ValueError: out of memory slots"),
        ("raise ValueError('a\\nb')", "mask.py, line 2, in mask: ValueError: a"),
    ],
)
def test_what_a_mask_does_wrong_is_told_in_one_line(tmp_path: Path, body: str, words: str) -> None:
    with pytest.raises(UserCodeError) as told:
        scores(user_mask(tmp_path / "mask.py", f"def mask(noise, side, num_visible, landmarks):\n    {body}\n"))
    assert str(told.value).startswith(words)
    assert "\n" not in str(told.value)


def test_the_line_is_the_innermost_of_the_file_and_not_of_a_library(tmp_path: Path) -> None:
    text = "import numpy\ndef inner(x):\n    return numpy.reshape(x, 7)\n\n\ndef mask(*a):\n    return inner(a[0])\n"
    with pytest.raises(UserCodeError, match=r"^mask.py, line 3, in inner: ValueError: cannot reshape"):
        scores(user_mask(tmp_path / "mask.py", text))
    with pytest.raises(UserCodeError, match=r"^mask.py, line 1: ModuleNotFoundError: No module named 'no_such'"):
        scores(user_mask(tmp_path / "mask.py", "import no_such\n" + GOOD))


def test_an_error_comes_out_of_a_process_that_decodes_as_it_is(
    tiny_run: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MAX_BYTES_IN_MEMORY", 0)
    split = split_of(tiny_run)
    images, plan = open_images(tiny_run.data, split.manifest), step_plan(tiny_run.batch, 0, 1)
    for text, words in (GOOD, None), ("def mask(*a):\n    return {}[3]\n", "mask.py, line 2, in mask: KeyError: 3"):
        file = written(tmp_path / "mask.py", text)
        run = tiny_run.model_copy(update={"mask": Mask(kind="code", code=Code(uri=str(file)))})
        cells = slices(run, images, split.train, plan, range(1), torch.device("cpu"))
        if words is None:
            assert len(list(cells)) == 4
        else:
            with pytest.raises(UserCodeError) as told:
                list(cells)
            assert str(told.value) == words


def test_a_mask_is_given_landmarks_as_the_network_sees_them(
    tiny_run: RunSpec, tiny_faces: Path, tmp_path: Path
) -> None:
    """A mask that keeps what is near the first point, which is where the image has been mirrored to."""
    text = """
        import numpy as np
        def mask(noise, side, num_visible, landmarks):
            if landmarks is None:
                return noise
            x, y = landmarks[0]
            column, row = np.meshgrid(np.arange(side), np.arange(side))
            return np.hypot(column + 0.5 - x * side, row + 0.5 - y * side).ravel()
        """
    names = sorted(path.name for path in tiny_faces.iterdir())[::2]
    (tmp_path / "l.json").write_text(
        json.dumps({name: {"points68": [[9, 15]] + [[n, n % 7] for n in range(67)]} for name in names})
    )
    code = Code(uri=str(written(tmp_path / "mask.py", text)))
    mask = Mask(kind="code", code=code, landmarks=str(tmp_path / "l.json"))
    run, split = tiny_run.model_copy(update={"mask": mask}), split_of(tiny_run)
    points = mask_points(run, split.train)
    images, plan = open_images(run.data, split.manifest), step_plan(run.batch, 0, 1)
    seen = set()
    for cell in slices(run, images, split.train, plan, range(1), torch.device("cpu"), points=points):
        for index, flipped, noise_L in zip(cell.index_B.tolist(), cell.flipped_B.tolist(), cell.online_BL, strict=True):
            if split.train.key(index) in names:
                assert divmod(int(noise_L.argmin()), 8) == (2, 6 if flipped else 1)
                seen.add(flipped)
    assert seen == {False, True}


def test_memory_that_runs_out_and_a_request_to_stop_stay_what_they_are(tmp_path: Path) -> None:
    code = Code(uri=str(written(tmp_path / "mask.py", "def mask(call, *a):\n    return call()\n")))

    def stop() -> None:
        raise SystemExit(143)

    def out_of_memory() -> None:
        raise RuntimeError("CUDA error: out of memory")

    for call, kind in (stop, SystemExit), (out_of_memory, RuntimeError):
        with pytest.raises(kind):
            UserFunction(code, MASK)(call, 1, 2, 3)


def test_code_that_is_gone_or_has_changed_is_the_runs_own_error(tmp_path: Path) -> None:
    file = written(tmp_path / "mask.py", GOOD)
    with pytest.raises(UserCodeError, match="has changed since the run was submitted"):
        UserFunction(Code(uri=str(file), sha256="0" * 64), MASK)
    with pytest.raises(UserCodeError, match="there is no user code at"):
        UserFunction(Code(uri=str(tmp_path / "none.py")), MASK)
    with pytest.raises(UserCodeError, match="defines no function feature_loss"):
        UserFunction(Code(uri=str(file)), LOSS)


def test_a_function_goes_to_another_process_and_is_made_there(tmp_path: Path) -> None:
    mask = user_mask(tmp_path / "mask.py", GOOD)
    before = scores(mask)
    (tmp_path / "mask.py").unlink()
    assert (scores(pickle.loads(pickle.dumps(mask))) == before).all()


def test_a_loss_is_the_sum_over_taps_for_every_slice(tiny_run: RunSpec, tmp_path: Path) -> None:
    text = "def feature_loss(predicted, wanted):\n    return (predicted - wanted).abs().mean()\n"
    compare = user_comparison(runs(tiny_run, loss=str(written(tmp_path / "loss.py", text))))
    assert compare
    torch.manual_seed(0)
    mine, theirs = ([torch.randn(3, 4, 5, width) for width in (6, 7)] for _ in range(2))
    mine[0].requires_grad_()
    found_S = compare(mine, theirs)
    expected_S = sum((one - other).abs().mean(dim=(1, 2, 3)) for one, other in zip(mine, theirs, strict=True))
    torch.testing.assert_close(found_S, expected_S)
    found_S.sum().backward()
    assert mine[0].grad is not None
    assert user_comparison(tiny_run) is None


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return predicted.nope", "loss.py, line 2, in feature_loss: AttributeError"),
        ("return 3.0", "loss.py, in feature_loss: it returned a float; possible: a tensor that holds one number"),
        ("return predicted - wanted", "loss.py, in feature_loss: it returned torch.float32 of shape [4, 5, 6]"),
        ("return predicted.detach().mean()", "loss.py, in feature_loss: its result has no gradient"),
    ],
)
def test_what_a_loss_does_wrong_is_told(tiny_run: RunSpec, tmp_path: Path, body: str, words: str) -> None:
    file = written(tmp_path / "loss.py", f"def feature_loss(predicted, wanted):\n    {body}\n")
    compare = user_comparison(runs(tiny_run, loss=str(file)))
    assert compare
    with pytest.raises(UserCodeError) as told:
        compare([torch.ones(2, 4, 5, 6, requires_grad=True)], [torch.ones(2, 4, 5, 6)])
    assert str(told.value).startswith(words)


NETWORK = """
from torch import nn
class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 4, 1)
    def forward(self, images):
        first = self.one(images)
        return [x.flatten(2).transpose(1, 2) for x in (first, self.two(first.relu()))]
def teacher():
    return Two()
"""


def test_a_teacher_of_user_code_is_frozen_and_drawn_from_its_seed_or_read_from_a_file(
    tiny_run: RunSpec, tmp_path: Path
) -> None:
    code = str(written(tmp_path / "net.py", NETWORK))
    cpu, image = torch.device("cpu"), torch.rand(2, 3, 64, 64)
    asked = {"arch": "code", "code": code, "taps": (0, 1)}
    one, same, other = (build(runs(tiny_run, **asked, seed=seed), cpu) for seed in (0, 0, 1))
    assert one
    assert same
    assert other
    assert not any(weight.requires_grad for weight in one.parameters())
    assert [list(tap.shape) for tap in one(image)] == [[2, 64, 8], [2, 64, 4]]
    assert torch.equal(one(image)[1], same(image)[1])
    assert not torch.equal(one(image)[1], other(image)[1])
    assert one.identity == same.identity != other.identity
    weights = {name.removeprefix("network."): value for name, value in other.network.state_dict().items()}
    torch.save(weights, tmp_path / "w.pt")
    read = build(runs(tiny_run, **asked, source=str(tmp_path / "w.pt")), cpu)
    assert read
    assert torch.equal(read(image)[1], other(image)[1])
    written(tmp_path / "net.py", NETWORK + "\n# another\n")
    changed = build(runs(tiny_run, **asked), cpu)
    assert changed
    assert changed.identity != one.identity, "kept features of other code are not taken for these"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("return Two()", "return 7", "net.py, in teacher: it returned a int; possible: a torch.nn.Module"),
        ("return [x.", "return images; [x.", "its network gives a tensor of shape [1, 3, 64, 64]; possible: a list"),
        ("x.flatten(2).transpose(1, 2)", "x", "its network gives a tensor of shape [1, 8, 8, 8] for 1 images"),
        ("self.one(images)", "self.one(images.detach())", "no gradient passes from its features to the image"),
        ("self.one(images)", "self.three(images)", "net.py, line 8, in forward: AttributeError"),
    ],
)
def test_what_a_teacher_does_wrong_is_told_before_the_first_step(
    tiny_run: RunSpec, tmp_path: Path, old: str, new: str, words: str
) -> None:
    code = str(written(tmp_path / "net.py", NETWORK.replace(old, new)))
    with pytest.raises(UserCodeError) as told:
        build(runs(tiny_run, arch="code", code=code, taps=(0, 1)), torch.device("cpu"))
    assert words in str(told.value)
