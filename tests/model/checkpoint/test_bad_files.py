"""Every bad file of a model is one sentence: the file, the tensor or key, expected and found.

The table damages the bytes of a sound pair; the sentences lie beside it, in bad_files.txt. What the
file system can do to a name comes after it.
"""

from __future__ import annotations

import gc
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from sapwood.model.checkpoint.files import ModelDirectory, ModelRefused
from sapwood.model.checkpoint.safetensors import TensorEntry, weight_files
from sapwood.model.checkpoint.weights import Fitted
from sapwood.model.pair import load_pair
from tests.model.checkpoint.bad_files import (
    CASES,
    DRAFT_CONFIG,
    GENERATION,
    NORM,
    PACKED,
    TEMPLATE,
    Change,
)
from tests.model.checkpoint.damage import CONFIG, ONE_PATH, Damage
from tests.model.checkpoint.sound import DRAFT, ONE, arrays_of, load, sound, write
from tests.model.reference import parameters


@cache
def _sentences() -> dict[str, str]:
    lines = (Path(__file__).parent / "bad_files.txt").read_text().splitlines()[2:]
    return {name: sentence.strip() for name, sentence in zip(lines[::2], lines[1::2], strict=True)}


def _refusal(files: dict[str, bytes], place: Path) -> str:
    write(files, place)
    with pytest.raises(ModelRefused) as refused:
        load(place)
    return str(refused.value).removeprefix(f"{place}/")


def _assert_refused(damage: Change, sentence: str, packed: bool, place: Path) -> None:
    damaged = Damage(dict(sound(packed)))
    with np.errstate(divide="ignore"):
        damage(damaged)
    found = _refusal(damaged.files, place)
    start = sentence.removesuffix("…")
    assert found == sentence or (start != sentence and found.startswith(start))
    assert found.isprintable()


@pytest.mark.parametrize("case", CASES)
def test_a_bad_file_is_one_sentence(case: str, tmp_path: Path) -> None:
    _assert_refused(CASES[case], _sentences()[case], False, tmp_path)


@pytest.mark.parametrize("case", PACKED)
def test_a_bad_packed_file_is_one_sentence(case: str, tmp_path: Path) -> None:
    _assert_refused(PACKED[case], _sentences()[case], True, tmp_path)


def test_every_sentence_has_its_case() -> None:
    assert _sentences().keys() == CASES.keys() | PACKED.keys()


@pytest.mark.parametrize("packed", [False, True])
def test_the_undamaged_pair_loads(packed: bool, tmp_path: Path) -> None:
    """The NaN in its tower's tensor included: what is left out is not read."""
    write(sound(packed), tmp_path)
    pair = load(tmp_path)
    assert pair.tokenizer.encode_text("ab")[1:] == [9]


def test_a_bad_drafter_is_found_before_the_targets_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fitted, "load", lambda *_: pytest.fail("weights were read"))
    for case in (
        "a drafter's missing tensor",
        "a drafter's file cut short",
        "a tensor in two shards",
    ):
        damaged = Damage(dict(sound()))
        CASES[case](damaged)
        assert _refusal(damaged.files, tmp_path / case) == _sentences()[case]


def _peak_bytes(load_it: Callable[[], object]) -> int:
    gc.collect()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    load_it()
    return mx.get_peak_memory() - before


def test_the_first_bad_tensor_ends_the_load(tmp_path: Path) -> None:
    """What comes after it in the files is never in memory."""
    write(sound(), tmp_path / "sound")
    whole = _peak_bytes(lambda: load(tmp_path / "sound"))
    damaged = Damage(dict(sound()))
    name, array = next(iter(arrays_of(damaged.files[ONE_PATH]).items()))
    damaged.tensor(name, array * np.float32("nan"))
    sentence = f"target/{ONE}: {name} holds NaN or infinity, expected finite float32 values"
    found: list[str] = []
    part = _peak_bytes(lambda: found.append(_refusal(damaged.files, tmp_path)))
    assert found == [sentence]
    assert part < whole / 4


def test_what_overflows_in_the_dtype_that_is_served_is_refused(tmp_path: Path) -> None:
    damaged = Damage(dict(sound()))
    damaged.tensor(NORM, np.full(32, 1e6, np.float32))
    write(damaged.files, tmp_path)
    target = ModelDirectory(tmp_path / "target")
    assert load_pair(target, None, "bfloat16").dtype == mx.bfloat16
    with pytest.raises(ModelRefused, match=r"NaN or infinity, expected finite float16 values$"):
        load_pair(target, None, "float16")


def test_a_model_whose_numbers_overflow_is_refused(tmp_path: Path) -> None:
    """Every weight is finite, and their products are not."""
    damaged = Damage(dict(sound()))
    damaged.text("final_logit_softcapping", None)
    damaged.tensor(NORM, np.full(32, 3e38, np.float32))
    sentence = "the target's logits are not finite in float32, expected numbers"
    assert _refusal(damaged.files, tmp_path / "target") == sentence
    damaged = Damage(dict(sound()))
    damaged.tensor("model.norm.weight", np.full(32, 3e38, np.float32), DRAFT)
    sentence = "the drafter's logits are not finite in float32, expected numbers"
    assert _refusal(damaged.files, tmp_path / "drafter") == sentence


def test_an_absurd_config_costs_nothing_before_it_is_refused(tmp_path: Path) -> None:
    """The largest sizes that a config may name, against the headers of small files."""
    sizes = {"vocab_size": 1 << 24, "hidden_size": 1 << 20, "intermediate_size": 1 << 20}
    experts = {"enable_moe_block": True, "num_experts": 1 << 20, "top_k_experts": 1 << 20}
    damaged = Damage(dict(sound()))
    for key, value in (sizes | experts | {"moe_intermediate_size": 1 << 20}).items():
        damaged.text(key, value)
    damaged.text("vocab_size_per_layer_input", 1 << 24)
    damaged.remove(DRAFT_CONFIG)
    write(damaged.files, tmp_path)
    found: list[str] = []

    def refuse() -> None:
        with pytest.raises(ModelRefused) as refused:
            load_pair(ModelDirectory(tmp_path / "target"), None, "float32")
        found.append(str(refused.value))

    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert _peak_bytes(refuse) < 1 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kib < 32 << 10
    assert (
        "does not fit the config: expected model.embed_tokens.weight is" in found[0]
        or "is missing" in found[0]
    )


class _One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(64, 8, bias=False)


@pytest.mark.parametrize(
    ("mode", "group_size", "bits", "part", "byte", "code"),
    [
        ("mxfp4", 32, 4, "scales", 0xFF, "e8m0"),
        ("mxfp8", 32, 8, "scales", 0xFF, "e8m0"),
        ("mxfp8", 32, 8, "weight", 0x7F, "e4m3"),
        ("nvfp4", 16, 4, "scales", 0x7F, "e4m3"),
        ("nvfp4", 16, 4, "scales", 0xFF, "e4m3"),
    ],
)
def test_a_float8_number_that_is_none_is_refused(
    mode: str, group_size: int, bits: int, part: str, byte: int, code: str
) -> None:
    def fitted(byte: int) -> Fitted[_One]:
        module = _One()
        nn.quantize(module, group_size=group_size, bits=bits, mode=mode)
        weights = parameters(module)
        array = np.array(weights[f"proj.{part}"])
        array.view(np.uint8)[3, 1] = byte
        weights[f"proj.{part}"] = mx.array(array)
        origins = {k: TensorEntry("here", k, "U8", v.shape, 0, 0) for k, v in weights.items()}
        return Fitted(module, weights, origins)

    fitted(0x3F).load(mx.float32)
    sentence = f"^here: proj.{part} holds NaN or infinity, expected finite {code} values$"
    with pytest.raises(ModelRefused, match=sentence):
        fitted(byte).load(mx.float32)


def _single(place: Path) -> ModelDirectory:
    """A directory whose one weight file is still to be made."""
    home = place / "model"
    home.mkdir()
    (place / "elsewhere").write_bytes(sound()[DRAFT])
    return ModelDirectory(home)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (Path.mkdir, "model/model.safetensors: is not a regular file"),
        (os.mkfifo, "model/model.safetensors: is not a regular file"),
        (
            lambda p: p.symlink_to("/dev/zero"),
            "model/model.safetensors: leads out of its directory, to /dev/zero",
        ),
        (
            lambda p: p.symlink_to("../elsewhere"),
            "model/model.safetensors: leads out of its directory, to {}/elsewhere",
        ),
        (lambda p: p.symlink_to("gone"), "model/model.safetensors: no such file"),
        (lambda p: p.symlink_to(p.name), "model/model.safetensors: cannot be read: "),
    ],
)
def test_a_weight_file_is_a_regular_file_of_its_directory(
    make: Callable[[Path], None], sentence: str, tmp_path: Path
) -> None:
    directory = _single(tmp_path)
    make(directory.path / "model.safetensors")
    with pytest.raises(ModelRefused) as refused:
        weight_files(directory)
    assert str(refused.value).startswith(f"{tmp_path}/{sentence.format(tmp_path)}")


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that others may enter, left by who may read everything."""
    with tempfile.TemporaryDirectory() as name:
        place, user = Path(name), os.geteuid()
        place.chmod(0o755)
        write(sound(), place)
        yield place
        os.seteuid(user)


@pytest.mark.parametrize(
    ("name", "mode", "sentence"),
    [
        (f"target/{ONE}", 0, f"target/{ONE}: cannot be read: Permission denied"),
        (CONFIG, 0, f"{CONFIG}: cannot be read: Permission denied"),
        (TEMPLATE, 0, f"{TEMPLATE}: cannot be read: Permission denied"),
        ("target", 0, f"{CONFIG}: cannot be read: Permission denied"),
    ],
)
def test_a_file_that_may_not_be_read_is_one_sentence(
    name: str, mode: int, sentence: str, as_nobody: Path
) -> None:
    (as_nobody / name).chmod(mode)
    if os.geteuid() == 0:
        os.seteuid(65534)
    with pytest.raises(ModelRefused) as refused:
        load(as_nobody)
    assert str(refused.value) == f"{as_nobody}/{sentence}"


def test_an_optional_file_that_leads_nowhere_is_not_taken_for_absent(tmp_path: Path) -> None:
    """A default in its place would be silent."""
    files = dict(sound())
    del files[GENERATION]
    write(files, tmp_path)
    (tmp_path / GENERATION).symlink_to("../../blobs/gone")
    with pytest.raises(ModelRefused, match=f"{GENERATION}: no such file"):
        load(tmp_path)


def test_a_folder_of_any_name_stays_on_one_line(tmp_path: Path) -> None:
    home = tmp_path / "a\n\x1b[2J"
    with pytest.raises(ModelRefused) as refused:
        load(home)
    assert str(refused.value) == f"{tmp_path}/a\\n\\x1b[2J/target/config.json: no such file"
