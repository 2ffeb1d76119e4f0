"""Speed and memory of inference: images a second of a recipe's model, a checkpoint, or a head, at any image size.

Forms of one model take turns: eager, with its batch norms folded into the convolutions before them (fused), compiled,
and both. Their outputs are compared before any time is taken. A model that is bound to its crop predicts by windows.
The same command runs on a CPU and, where there is one, on a GPU.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pipelines.speed.report import Report, ratios, spread

if TYPE_CHECKING:
    from pipelines.speed.subjects import Logits, Shapes, Size, Subject

REPEATS = 10
FORMS = ("eager", "fused", "compiled", "fused+compiled")
TYPES = ("fp32", "bf16")
COLUMNS = (
    "model", "form", "type", "H x W", "batch", "parameters, M", "GMACs an image", "MiB at once", "ms",
    "images/s", "eager / form", "difference",
)  # fmt: skip
NOTES = (
    "ms: of one batch, median (least to greatest) of the rounds in turn, after two calls that are not counted, until "
    "the device is done; images/s: the batch over the median; on a CPU with one thread the processor's time, which "
    "other work hardly lengthens, else the wall clock",
    "eager / form: median of the rounds' own ratios; difference: of the outputs from the eager form's, relative to the "
    "greatest",
    "GMACs: convolutions and matrix products of one image, by segmodels/cost.py; of a model that predicts by windows, "
    "of all of them",
    "MiB at once: the most held besides weights and inputs; on a GPU the allocator's peak, on a CPU counted in float32 "
    "without computing, so there is none of compiled forms and of bf16",
    "from raw RGB to logits at the image's size; a head by itself from the trunk's maps to its own logits; no reading, "
    "no decoding, no argmax",
)


@dataclass(frozen=True)
class Counted:
    """What is known of a subject at a size before anything is computed."""

    subject: str
    size: Size
    parameters: int
    gmacs: float
    peak: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument(
        "words", nargs="+", metavar="NAME [key=value …]",
        help="recipes, checkpoints (….pt) or heads; key=value changes the one before it: ocnet attention=sa ocnet",
    )  # fmt: skip
    parser.add_argument(
        "--size", nargs=2, type=int, action="append", metavar=("H", "W"), dest="sizes",
        help="of the image in pixels; again for a curve (default 1024 2048)",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=1, help="images at once (default %(default)s)")
    parser.add_argument(
        "--forms", nargs="+", metavar="FORM", help=f"of {', '.join(FORMS)} (default: eager fused; on a GPU all)"
    )
    parser.add_argument("--dtype", nargs="+", default=["fp32"], metavar="TYPE", help="of fp32, bf16 (default fp32)")
    parser.add_argument("--classes", type=int, help="K (default: the benchmark's; of a head by itself 21)")
    parser.add_argument("--threads", type=int, help="of a CPU (default: PyTorch's choice)")
    parser.add_argument("--counts-only", action="store_true", help="parameters, GMACs, memory; nothing is timed")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="curves over two sizes or more")


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be measured.

    Raises:
        InputError: an unknown name, form or type, a size or number of no use, or no compiler.
    """
    from pipelines.base.errors import InputError
    from pipelines.base.text import nearest
    from pipelines.speed.subjects import read_words, subject_of

    args.sizes = [tuple(size) for size in args.sizes or [(1024, 2048)]]
    for what, given, known in (("form", args.forms or [], FORMS), ("type", args.dtype, TYPES)):
        if unknown := [name for name in given if name not in known]:
            raise InputError(f"no {what} {unknown[0]!r}{nearest(unknown[0], known)} Known: {', '.join(known)}")
    for option, number in (("--batch", args.batch), ("--classes", args.classes), ("--threads", args.threads)):
        if number is not None and number < 1:
            raise InputError(f"{option} {number}: 1 or more")
    if min(map(min, args.sizes)) < 1:
        raise InputError(f"--size {' '.join(map(str, min(args.sizes)))}: pixels, 1 or more")
    if args.picture and (len(set(args.sizes)) < 2 or not args.picture.absolute().parent.is_dir()):
        raise InputError(f"--picture {args.picture}: a file in a folder that is there, with two --size or more")
    settle_forms(args)
    args.subjects = [subject_of(name, changes, args.classes) for name, changes in read_words(args.words)]
    args.counted = {(s.label, size): count(s, size, args.batch) for s in args.subjects for size in args.sizes}


def settle_forms(args: argparse.Namespace) -> None:
    """The device and its forms; the eager one is always there, since the others are compared with it.

    Raises:
        InputError: a CPU is to compile, and there is no C++ compiler.
    """
    import torch

    from pipelines.base.errors import InputError
    from segmodels.precision import default_device

    args.device = default_device().type
    forms = args.forms or (FORMS if args.device == "cuda" else FORMS[:2])
    args.forms = [form for form in FORMS if form in forms or form == "eager"]
    compiler = shutil.which("g++") or shutil.which("clang++")
    if args.device == "cpu" and not compiler and any("compiled" in form for form in forms):
        raise InputError("--forms compiled: PyTorch compiles with g++ or clang++, and neither is installed")
    if args.threads:
        torch.set_num_threads(args.threads)


def count(subject: Subject, size: Size, batch: int) -> Counted:
    """Parameters, GMACs of one image and memory of a batch at a size, in eager form, on tensors that hold nothing.

    Raises:
        InputError: the model does not take the size.
    """
    import torch

    from pipelines.base.errors import InputError
    from segmodels.cost import conv_matmul_macs, on_meta
    from segmodels.memory import evaluation_peak

    model, shapes = subject.at(size)
    zeros = [torch.zeros(1, *shape, device="meta") for shape in shapes]
    try:
        with torch.no_grad():
            macs = conv_matmul_macs(on_meta(model), zeros if len(zeros) > 1 else zeros[0])
        peak = evaluation_peak(model, [(batch, *shape) for shape in shapes])
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{subject.label} does not take {size[0]} x {size[1]} pixels: {error}") from None
    return Counted(subject.label, size, sum(p.numel() for p in model.parameters()), macs / 1e9, peak)


def measure(args: argparse.Namespace) -> Report:
    """A row for each subject, size, type and form."""
    import torch

    rows: list[list[str]] = []
    measured: dict[str, Any] = {}
    for subject in args.subjects:
        for size in args.sizes:
            counted: Counted = args.counted[subject.label, size]
            for dtype in args.dtype:
                timed = {} if args.counts_only else contest(args, subject, size, dtype)
                rows += rows_of(args, counted, dtype, timed)
                key = f"{subject.label} {size[0]}x{size[1]} {dtype}"
                measured[key] = {**vars(counted), "forms": {form: vars(t) for form, t in timed.items()}}
                print(f"  {key} is done", flush=True)
    if args.picture:
        from pipelines.speed.curves import draw_curves

        print(f"curves: {draw_curves(args.picture, list(measured.values()), where(args.device))}")
    threads = f", {torch.get_num_threads()} thread(s)" if args.device == "cpu" else ""
    weights = "of the checkpoint, else drawn" if has_weights(args) else "drawn"
    title = f"Inference on {where(args.device)}{threads}; weights {weights}"
    return Report(title, COLUMNS, rows, NOTES, measured)


def has_weights(args: argparse.Namespace) -> bool:
    """Whether a checkpoint is among the subjects."""
    return any(word.endswith(".pt") for word in args.words)


def where(device: str) -> str:
    """The device in words."""
    from pipelines.base.machine import cpu_model
    from pipelines.speed.report import gpu_name

    return gpu_name() if device == "cuda" else cpu_model()


@dataclass(frozen=True)
class Timed:
    """One form: seconds of each round, the difference of its output from the eager one, and its peak in bytes."""

    seconds: list[float]
    difference: float
    peak: int | None


def contest(args: argparse.Namespace, subject: Subject, size: Size, dtype: str) -> dict[str, Timed]:
    """The forms of a subject in turns, after their outputs were compared."""
    import torch

    from pipelines.speed.rounds import difference, in_turns, lower, seconds

    torch.manual_seed(0)
    model, shapes = subject.at(size)
    inputs = draw_inputs(shapes, args.batch, args.device)
    forms = forms_of(args.forms, model, shapes, args.device)

    def run(form: Callable[..., Any]) -> Any:
        with torch.no_grad(), lower(args.device, dtype):
            return form(inputs)

    base = run(forms["eager"]).float()
    apart = {name: difference(run(form).float(), base) for name, form in forms.items()}
    check_agreement(subject.label, apart, dtype)
    batch = [(args.batch, *shape) for shape in shapes]
    peaks = {name: peak_of(name, form, batch, partial(run, form), args.device, dtype) for name, form in forms.items()}
    cases = {name: partial(seconds, run, form, args.device) for name, form in forms.items()}
    times = in_turns(cases, args.repeats)
    return {name: Timed(times[name], apart[name], peaks[name]) for name in forms}


def peak_of(name: str, form: Any, shapes: Shapes, work: Callable[[], object], device: str, dtype: str) -> int | None:
    """The most that a form holds at once, in bytes; None where a CPU does not show it."""
    from segmodels.memory import evaluation_peak, peak_bytes

    if device == "cuda":
        return peak_bytes(work, device)
    return None if "compiled" in name or dtype != "fp32" else evaluation_peak(form, shapes)


def check_agreement(label: str, apart: Mapping[str, float], dtype: str) -> None:
    """Forms that compute something else say nothing; in bf16, whose numbers have 8 bits, they may differ by more.

    Raises:
        Disagreement: they differ.
    """
    from pipelines.speed.rounds import AGREE, Disagreement

    allowed = AGREE if dtype == "fp32" else 0.1
    for name, far in apart.items():
        if not far < allowed:
            raise Disagreement(f"{label}: {name} differs from eager by {far:.1e}; allowed: {allowed:g}, relative")


def draw_inputs(shapes: Shapes, batch: int, device: str) -> Any:
    """A batch of images of 0 to 255, or of maps as they come from a ReLU."""
    import torch

    if len(shapes) == 1 and shapes[0][0] == 3:
        image = torch.randint(0, 256, (batch, *shapes[0]), device=device, dtype=torch.uint8)
        return image.to(memory_format=layout(device))
    maps = [torch.randn(batch, *shape, device=device).relu().to(memory_format=layout(device)) for shape in shapes]
    return maps if len(maps) > 1 else maps[0]


def layout(device: str) -> Any:
    """Memory as in training: channels last on a GPU."""
    import torch

    return torch.channels_last if device == "cuda" else torch.contiguous_format


def forms_of(names: Sequence[str], model: Logits, shapes: Shapes, device: str) -> dict[str, Callable[..., Any]]:
    """The forms that are asked for; a model by windows is compiled for a window."""
    import torch

    from pipelines.speed.subjects import Logits
    from segmodels.folding import fold_norms

    torch.compiler.reset()
    eager = model.to(device, memory_format=layout(device))  # type: ignore[call-overload]
    forms: dict[str, Callable[..., Any]] = {}
    for name in names:
        inner = fold_norms(eager.model, model.inputs(shapes)) if "fused" in name else eager.model
        if "compiled" in name:
            inner = torch.compile(inner, dynamic=False)  # type: ignore[assignment]
        forms[name] = Logits(inner, model.windows).eval()
    return forms


def rows_of(args: argparse.Namespace, counted: Counted, dtype: str, timed: Mapping[str, Timed]) -> list[list[str]]:
    """The table's rows of a subject at a size."""
    size, facts = f"{counted.size[0]} x {counted.size[1]}", [f"{counted.parameters / 1e6:.3f}", f"{counted.gmacs:.3f}"]
    same = [dtype, size, str(args.batch), *facts]
    if not timed:
        return [[counted.subject, "eager", *same, mib(counted.peak), "–", "–", "–", "–"]]
    rows = []
    for form, t in timed.items():
        rate, ratio = args.batch / median(t.seconds), median(ratios(timed["eager"].seconds, t.seconds))
        numbers = [spread(t.seconds, 1, 1e3), f"{rate:.2f}", f"{ratio:.2f}", f"{t.difference:.0e}"]
        rows.append([counted.subject, form, *same, mib(t.peak), *numbers])
    return rows


def mib(size: int | None) -> str:
    """Bytes in MiB; a dash where they are not known."""
    return "–" if size is None else f"{size / 2**20:.1f}"
