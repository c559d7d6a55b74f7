"""Is every Metal kernel that we rely on in the macOS wheel of the locked mlx? Run by hand.

- The table below is the whole list, with why. A name is a pattern for a whole kernel name; {type},
  {plain}, {packing} and {size} stand for each dtype and packing that docs/checkpoints.md promises,
  {rows} for tiles of 2 to 5.
- Names are read from the metallib's own directory of functions. Kernels that MLX compiles when they
  are first met are in no metallib: of those their source must lie in the library.
- The wheel is downloaded into a temporary folder, by pip and on any system; nothing is installed.
- 0: all there. 1: some are not, each named with why it matters. 2: the wheel cannot be had.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sapwood.model.checkpoint.config import PACKINGS
from tests.test_rooms import ROOT

# The oldest macOS that the locked wheel is built for.
PLATFORM = "macosx_14_0_arm64"

#: MLX's names of a dtype in quantised kernels and in all others.
TYPES = {"bfloat16_t": "bfloat16", "float16_t": "float16", "float": "float32"}

ONE_ROW = "packed linear layers of one row: every decode step of one client"
WIDE = "packed linear layers of 2 to 5 rows on M3 and later: a round with drafts, a few clients"
MANY = "packed linear layers of many rows: prompts, and steps of many clients"
ROUTED = "experts of 26B-A4B, a matrix and vector for each row and expert"
SLIDING = "sliding attention (head size 256) of up to 8 queries, fused"
FULL = "full attention (head size 512) of one query, fused where mlx admits it"
SCORES = "attention that is not fused: prompts, and full layers"
ORDER = "sampling and the ordered drafter head: stable sorts of candidates and vocabularies"

#: pattern of the kernel's name, why it is needed. No alternatives: one of them could get lost.
KERNELS: dict[str, str] = {
    r"{packing}_qmv_{type}_{size}_batch_0_\w+": ONE_ROW,
    r"{packing}_qmv_fast_{type}_{size}_batch_0_\w+": ONE_ROW,
    r"{packing}_qmv_wide_{type}_{size}_nv_{rows}_\w+_batch_0": WIDE,
    r"{packing}_qmm_t_{type}_{size}_alN_true_batch_0": MANY,
    r"{packing}_qmm_t_{type}_{size}_alN_false_batch_0": MANY,
    r"{packing}_qmm_t_splitk_{type}_{size}_alN_true": MANY,
    r"{packing}_gather_qmv_{type}_{size}": ROUTED,
    r"{packing}_gather_qmv_fast_{type}_{size}": ROUTED,
    r"{packing}_gather_qmm_rhs_nt_{type}_{size}\w*": "experts of 64 rows and more, sorted",
    r"{packing}_dequantize_{type}_{size}\w*": "rows of packed embeddings, the per-layer ones too",
    r"nvfp4_qmv_fast_{type}_gs_16_b_4_batch_0_pr_0_hgs_1_r_4": "nvfp4 with its global scale",
    r"nvfp4_gather_qmv_fast_{type}_gs_16_b_4_hgs": "experts in nvfp4 with a global scale each",
    r"gemv_{plain}_\w+": "plain linear layers of one row: a drafter in bfloat16",
    r"gemv_wide_bfloat16_nv{rows}_\w+": "plain linear layers of 2 to 15 rows",
    r"gemv_wide_float16_nv{rows}_\w+": "plain linear layers of 2 to 15 rows",
    r"steel_gemm_fused_nt_{plain}_\w+": "plain linear layers of many rows",
    r"steel_gemm_fused_nn_{plain}_\w+": SCORES,
    r"sdpa_vector_{type}_256_256": SLIDING,
    r"sdpa_vector_2pass_1_{type}_256_256": SLIDING,
    r"sdpa_vector_2pass_2_{type}_256": SLIDING,
    r"sdpa_vector_{type}_512_512": FULL,
    r"sdpa_vector_2pass_1_{type}_512_512": FULL,
    r"sdpa_vector_2pass_2_{type}_512": FULL,
    r"block_softmax_{plain}": SCORES,
    r"looped_softmax_{plain}": SCORES,
    r"rms{plain}": "norms",
    r"rms_looped{plain}": "norms of rows too long for one threadgroup",
    r"rope_{plain}": "rotary embedding of sliding layers",
    r"rope_freqs_{plain}": "rotary embedding of full layers, whose frequencies are ours",
    r"argmax_{plain}": "greedy tokens; of equal ones the lowest id",
    r"carg_block_sort_{plain}_uint32_\w+": ORDER,
    r"sort_mbsort_{plain}_uint32_\w+": ORDER,
    r"partition_mbsort_{plain}_uint32_\w+": ORDER,
    r"merge_mbsort_{plain}_uint32_\w+": ORDER,
    r"c_block_sort_uint32_uint32_\w+": "candidates in the order of their ids",
    r"block_logsumexp_float32": "probabilities and log-probabilities",
    r"looped_logsumexp_float32": "probabilities and log-probabilities",
    r"searchsorted_int32_left": "where a row's token lies among those of its penalties and bias",
    r"contig_scan_reverse_inclusive_sum_int64_int64": "top_p: what is left of the probability",
    r"v\w*_copyfloat32int64": "top_p: probabilities as whole numbers, whose sums are exact",
    r"\w+_RightShiftint64": "top_p: its share of such a sum",
    r"\w+_Multiplyint64": "top_p: its share of such a sum",
    r"\w+_Greaterint64": "top_p: which tokens are within it",
    r"contig_scan_inclusive_prod_int32_int32": "how many drafts in a row were accepted",
    r"rbitsc": "noise from a seed: the same integers as on every other device",
    r"g[123]_copy{plain}{plain}": "K/V that is captured, restored, and pools that grow",
    r"v\w*_copybfloat16float32": "what samplers compute in float32",
    r"g[123]_Select{plain}": "masks: of scores, suppressed tokens and filters",
    r"gn2_Select{plain}": "masks of folded scores: rows, K/V heads, queries, heads, keys",
    r"v\w*_Logfloat32float32": "noise: the logarithm",
    r"v\w*_Log1pfloat32float32": "noise: the logarithm near 1",
}

#: source that the library must hold, why it is needed
COMPILED_LATER: dict[str, str] = {
    "METAL_FUNC void scatter_impl(": "K/V that is written into the pools",
    "METAL_FUNC void gather_impl(": "rows of embeddings, grids, frontiers",
    "[[kernel]] void gather_axis(": "take_along_axis: candidates' probabilities",
    "[[kernel]] void scatter_axis(": "put_along_axis: logits of an ordered head, bias",
}


@dataclass(frozen=True, slots=True)
class Missing:
    """A kernel that is not there: what was looked for, and why."""

    pattern: str
    why: str


def patterns() -> Iterator[tuple[str, str]]:
    """The table with every dtype, packing and tile written out."""
    types = [{"type": quantised, "plain": plain} for quantised, plain in TYPES.items()]
    sizes = [
        {"packing": mode, "size": f"gs_{group}_b_{bits}"}
        for mode, (all_bits, groups) in PACKINGS.items()
        for bits in all_bits
        for group in groups
    ]
    rows = [{"rows": str(count)} for count in range(2, 6)]
    for pattern, why in KERNELS.items():
        written = {pattern}
        for choices in (types, sizes, rows):
            written = {_filled(text, choice) for text in written for choice in choices}
        yield from ((text, why) for text in sorted(written))


def _filled(text: str, choice: Mapping[str, str]) -> str:
    for part, value in choice.items():
        text = text.replace(f"{{{part}}}", value)
    return text


def kernel_names(metallib: bytes) -> frozenset[str]:
    """Names of the functions in a metallib: tag NAME, length in two bytes, text, zero."""
    names = set()
    for tag in re.finditer(rb"NAME(..)", metallib, re.DOTALL):
        end = tag.end() + int.from_bytes(tag[1], "little")
        if text := re.fullmatch(rb"(\w+)\0", metallib[tag.end() : end]):
            names.add(text[1].decode())
    return frozenset(names)


def missing_kernels(names: frozenset[str], library: bytes) -> list[Missing]:
    """What the table names and neither the metallib nor the library has."""
    # One text for all patterns: a search each is quicker than a match for each name.
    text = "\n" + "\n".join(sorted(names)) + "\n"
    lost = [
        Missing(pattern, why)
        for pattern, why in dict(patterns()).items()
        if not re.search(rf"\n{pattern}\n", text)
    ]
    return lost + [
        Missing(source, why)
        for source, why in COMPILED_LATER.items()
        if source.encode() not in library
    ]


def locked_version() -> str:
    """Of mlx-metal in requirements.lock; it is released together with mlx."""
    lock = (ROOT / "requirements.lock").read_text()
    found = re.search(r"^mlx-metal==(\S+)", lock, re.MULTILINE)
    assert found, "requirements.lock names no mlx-metal"
    return found[1]


def download(version: str, folder: Path) -> Path:
    """The macOS wheel, in `folder`. Raises CalledProcessError where the index cannot be reached."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    pip += ["--retries", "1"]
    what = ["--no-deps", "--only-binary", ":all:", "--platform", PLATFORM, f"mlx-metal=={version}"]
    subprocess.run([*pip, "--dest", str(folder), *what], check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def read_wheel(wheel: Path) -> tuple[frozenset[str], bytes]:
    """Names of the kernels, and MLX's library."""
    with zipfile.ZipFile(wheel) as archive:
        names = kernel_names(archive.read("mlx/lib/mlx.metallib"))
        return names, archive.read("mlx/lib/libmlx.dylib")


def main() -> int:
    version = locked_version()
    with tempfile.TemporaryDirectory(prefix="sapwood-metal-") as folder:
        try:
            names, library = read_wheel(download(version, Path(folder)))
        except subprocess.CalledProcessError as error:
            print(f"mlx-metal {version} cannot be had: {error.stderr}", file=sys.stderr)
            return 2
    lost = missing_kernels(names, library)
    for missing in lost:
        print(f"missing: {missing.pattern}\n  {missing.why}")
    sought = len(dict(patterns())) + len(COMPILED_LATER)
    print(f"mlx-metal {version}: {len(names)} kernels; {sought - len(lost)} of {sought} found")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
