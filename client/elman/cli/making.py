"""`elman train` and `elman export`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console


class Task(StrEnum):
    lm = "lm"
    classify = "classify"
    tag = "tag"
    features = "features"
    tree = "tree"
    translation = "translate"  # "translate" is a method of str


class Preset(StrEnum):
    python = "python"
    python_words = "python-words"
    python_subwords = "python-subwords"
    python_tags = "python-tags"
    python_packages = "python-packages"
    shakespeare = "shakespeare"
    names = "names"
    sentiment = "sentiment"
    sentiment_bidirectional = "sentiment-bidirectional"
    digits = "digits"
    sentiment_tree = "sentiment-tree"
    sentiment_binary_tree = "sentiment-binary-tree"
    sentiment_recursive = "sentiment-recursive"
    phonemes = "phonemes"
    german_english = "german-english"
    stories = "stories"


class Cell(StrEnum):
    elman = "elman"
    lstm = "lstm"
    gru = "gru"
    child_sum = "child-sum"
    binary = "binary"
    recursive = "recursive"


class Precision(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class Quantization(StrEnum):
    int8 = "int8"


class Vocabulary(StrEnum):
    characters = "characters"
    bytes = "bytes"
    words = "words"
    subwords = "subwords"
    symbols = "symbols"


_DEFAULT_PRESETS = {
    Task.lm: Preset.python,
    Task.classify: Preset.python_packages,
    Task.tag: Preset.python_tags,
    Task.features: Preset.digits,
    Task.tree: Preset.sentiment_tree,
    Task.translation: Preset.german_english,
}
_OF_PRESET = "of the preset"
# Options that do something only where one of some other values is one of these.
_LEARNT = ("words", "subwords", "symbols")
_NEEDS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "vocabulary_size": (("vocabulary",), _LEARNT),
    "source_vocabulary_size": (("source_vocabulary",), _LEARNT),
    "minimum_count": (("vocabulary", "source_vocabulary"), ("characters", "words", "symbols")),
    "corpus_limit": (("task",), ("lm", "tag")),
    "window": (("task",), ("lm", "tag")),
    "restart": (("task",), ("lm",)),
}


def train(
    task: Annotated[
        Task | None,
        typer.Option(
            help="lm: a language model. classify: a class for a whole text. tag: a label for every character. "
            "features: a class for a row of numbers, by a feed-forward network. tree: a label for every node of a "
            "tree. translate: a text for a text, by an encoder and a decoder.",
            show_default="the preset's, else lm",
        ),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            help="'stdlib': the source of Python's own standard library. lm: a UTF-8 file or a folder of such. "
            "classify: a folder with one CLASS.txt a class, one example a line; a TSV file of text TAB label; or a "
            "folder with train.txt, dev.txt and test.txt of labelled trees, one s-expression a line. "
            "tag: a folder of Python files, or a TSV file of piece TAB label, newline, carriage return, "
            "tab and backslash in a piece written \\n, \\r, \\t and \\\\, an empty line between documents. "
            "features: 'digits', pictures of handwritten digits; a .csv or .tsv file of numbers and in the last column "
            "a label; or a .npz file with the arrays values and labels. "
            "tree: a folder with train.txt, dev.txt and test.txt, one tree a line, written (label word) or (label "
            "child child). "
            "translate: 'stories', made questions with answers; a folder of cmudict or of multi30k; or a TSV file of "
            "source TAB target.",
            show_default="stdlib, for features digits, for the preset stories stories",
        ),
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(
            help="A set of values that the options below replace one by one; they end up in the run's config.json. "
            "python, python-words, python-subwords, python-tags, python-packages: up to three minutes on the embedded "
            "corpus, also what other corpora start from. shakespeare: up to 20 minutes on a megabyte of text. names: "
            "short texts by class. sentiment, sentiment-bidirectional: sentences of a treebank, three minutes. "
            "sentiment-tree, sentiment-binary-tree, sentiment-recursive: grades of sentences and of all their parts. "
            "digits: seconds. phonemes, german-english, stories: encoder-decoders, up to an hour.",
            show_default="by task",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The run's folder, which must be new.", show_default="runs/ and the preset or corpus"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on with this stopped run, whose own values then count.", show_default=False),
    ] = None,
    cell: Annotated[
        Cell | None,
        typer.Option(
            help="The recurrent cell; of a tree child-sum, binary (both Tree-LSTMs) or recursive.",
            show_default=_OF_PRESET,
        ),
    ] = None,
    layers: Annotated[int | None, typer.Option(help="Recurrent layers.", show_default=_OF_PRESET)] = None,
    hidden: Annotated[int | None, typer.Option(help="Units a layer.", show_default=_OF_PRESET)] = None,
    embedding: Annotated[int | None, typer.Option(help="Features a token.", show_default=_OF_PRESET)] = None,
    dropout: Annotated[
        float | None, typer.Option(help="Share of activations dropped while training.", show_default=_OF_PRESET)
    ] = None,
    vocabulary: Annotated[
        Vocabulary | None,
        typer.Option(
            help="What a token is. characters, bytes. words: each with the space before it; also one digit, or a run "
            "of one other character or of white space. subwords: bytes joined where they often stand together, learnt "
            "from the corpus. symbols: whatever stands between white space. For translate: of the target.",
            show_default="of the preset, mostly characters",
        ),
    ] = None,
    source_vocabulary: Annotated[
        Vocabulary | None, typer.Option(help="The same of the source (translate).", show_default=_OF_PRESET)
    ] = None,
    vocabulary_size: Annotated[
        int | None, typer.Option(help="The most tokens, of words and subwords.", show_default="of the preset: 4096")
    ] = None,
    source_vocabulary_size: Annotated[
        int | None, typer.Option(help="The same of the source (translate).", show_default=_OF_PRESET)
    ] = None,
    lower_case: Annotated[
        bool, typer.Option("--lower-case", help="Put text into lower case first, only for words.")
    ] = False,
    minimum_count: Annotated[
        int | None,
        typer.Option(help="Rarer characters and words are read as the unknown token.", show_default=_OF_PRESET),
    ] = None,
    longest_source: Annotated[
        int | None,
        typer.Option(help="The most tokens of a source that is learnt from or taken (translate).", show_default="100"),
    ] = None,
    longest_target: Annotated[
        int | None,
        typer.Option(help="The most tokens of a target learnt from or written (translate).", show_default="100"),
    ] = None,
    attention: Annotated[
        bool | None,
        typer.Option(
            help="Whether the decoder looks at every position of the source, or all it knows is one vector "
            "(translate).",
            show_default=_OF_PRESET,
        ),
    ] = None,
    bidirectional: Annotated[
        bool | None,
        typer.Option(
            help="Whether half of the encoder reads backwards (translate); whether a text is read in both directions "
            "before anything is said of it (classify).",
            show_default=_OF_PRESET,
        ),
    ] = None,
    one_hot: Annotated[
        bool,
        typer.Option("--one-hot", help="One-hot features of tokens instead of learnt ones, to compare (translate)."),
    ] = False,
    label_smoothing: Annotated[
        float | None,
        typer.Option(
            help="The share of what is wanted that is spread over all tokens (translate).", show_default=_OF_PRESET
        ),
    ] = None,
    scheduled_sampling: Annotated[
        float | None,
        typer.Option(
            help="The share of the decoder's inputs that is drawn from what it makes itself, reached in the end "
            "(translate).",
            show_default="0",
        ),
    ] = None,
    curriculum: Annotated[
        float | None,
        typer.Option(
            help="The share of the steps in which longer and longer sources join, from the shortest fifth to all "
            "(translate).",
            show_default=_OF_PRESET,
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the optimiser.", show_default=_OF_PRESET)] = None,
    lanes: Annotated[int | None, typer.Option(help="Rows of a batch.", show_default=_OF_PRESET)] = None,
    window: Annotated[
        int | None,
        typer.Option(help="Steps of back-propagation through time (lm and tag).", show_default=_OF_PRESET),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of AdamW, after warm-up and before the cosine.", show_default=_OF_PRESET)
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            help="The share kept for validation: the end of a text, a part of every class, some of the pairs. Not of "
            "what comes in parts, such as a treebank.",
            show_default="0.1, for translate 0.05",
        ),
    ] = None,
    validate_every: Annotated[
        int | None, typer.Option(help="Steps between validations.", show_default=_OF_PRESET)
    ] = None,
    corpus_limit: Annotated[
        int | None, typer.Option(help="Characters of the corpus to read (lm and tag).", show_default=_OF_PRESET)
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(
            help="Of the products while training; bfloat16 is fast where the processor has it.",
            show_default="of the preset: float32",
        ),
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of the matrices.", show_default=_OF_PRESET)] = None,
    average_decay: Annotated[
        float | None,
        typer.Option(
            help="Of the running mean of the weights, which is what is kept; 0: none.", show_default=_OF_PRESET
        ),
    ] = None,
    restart: Annotated[
        float | None,
        typer.Option(
            help="How often a lane of text starts from the initial state at a window (lm).", show_default="0.05"
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.", show_default="0")] = None,
    stop_after: Annotated[
        int | None, typer.Option(help="Stop after this step; --resume goes on.", show_default="never", min=1)
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option(help="Stop after this time; --resume goes on.", show_default="never", min=0)
    ] = None,
) -> None:
    """Train a model. Ctrl-C stops it and keeps what was learned."""
    from pydantic import ValidationError

    import elman_training
    from elman_training.checkpoint import CURVE
    from elman_training.config import DIGITS, STORIES
    from elman_training.corpus import STDLIB

    console = Console(stderr=True, highlight=False, markup=False)
    given = {
        "cell": cell, "layers": layers, "hidden": hidden, "embedding": embedding, "dropout": dropout,
        "vocabulary": vocabulary, "vocabulary_size": vocabulary_size, "lower_case": lower_case or None,
        "minimum_count": minimum_count, "steps": steps, "lanes": lanes, "window": window,
        "learning_rate": learning_rate, "held_out": held_out, "validate_every": validate_every,
        "corpus_limit": corpus_limit, "precision": precision, "weight_decay": weight_decay,
        "average_decay": average_decay, "restart": restart, "seed": seed, "source_vocabulary": source_vocabulary,
        "source_vocabulary_size": source_vocabulary_size, "longest_source": longest_source,
        "longest_target": longest_target, "attention": attention, "bidirectional": bidirectional,
        "one_hot": one_hot or None, "label_smoothing": label_smoothing, "scheduled_sampling": scheduled_sampling,
        "curriculum": curriculum,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if resume is not None:
        others = {"task": task, "corpus": corpus, "preset": preset, "output": output}
        beside = [*given, *(name for name, value in others.items() if value is not None)]
        if beside:
            option = beside[0].replace("_", "-")
            raise typer.BadParameter(f"--{option} cannot stand beside --resume: the run goes on with its own values")
        folder = resume
        result = elman_training.resume(resume, console=console, stop_after=stop_after, minutes=max_minutes)
    else:
        chosen = preset or _DEFAULT_PRESETS[task or Task.lm]
        values: dict[str, Any] = dict(elman_training.PRESETS[chosen])
        if task is not None and values["task"] != task:
            raise typer.BadParameter(f"the preset {chosen} is for the task {values['task']}, not {task}")
        own = values.pop("corpus", None)
        embedded = corpus in (None, STDLIB, DIGITS, STORIES)
        if embedded and (own is None or corpus not in (None, own)):
            instead = f"--corpus {own} or one of yours" if own else "--corpus"
            raise typer.BadParameter(f"the preset {chosen} is for a corpus of yours: give {instead}")
        if not embedded and own == STDLIB:
            # Made for millions of characters of source; a text of yours is read whole.
            for name in ("minimum_count", "corpus_limit"):
                values.pop(name, None)
        values |= given
        try:
            config = elman_training.parse_config(
                {"preset": chosen.value, **values, "corpus": own if embedded else str(Path(str(corpus)).resolve())}
            )
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][-1]).replace("_", "-")  # Before it stands the task.
            if first["type"] == "extra_forbidden":
                raise typer.BadParameter(f"--{name} does nothing with --task {values['task']}") from error
            raise typer.BadParameter(f"--{name} {first['input']}: {first['msg']}") from error
        for name in _NEEDS.keys() & given.keys():
            deciding, suitable = _NEEDS[name]
            chosen_values = {other: getattr(config, other) for other in deciding if hasattr(config, other)}
            if chosen_values and not set(suitable) & set(chosen_values.values()):
                option = name.replace("_", "-")
                by = " and ".join(f"--{other.replace('_', '-')} {value}" for other, value in chosen_values.items())
                raise typer.BadParameter(f"--{option} does nothing with {by}, only {' or '.join(suitable)}")
        folder = output or Path("runs") / (chosen if embedded or preset else Path(config.corpus).stem)
        result = elman_training.train(config, folder, console=console, stop_after=stop_after, minutes=max_minutes)
    # Exactly: in one piece and from one start, where the validations on the way cut the text into rows.
    console.print(
        f"kept, measured exactly: {result.validation.nats:.4f} nats, {result.validation.bits:.4f} bits, held out"
    )
    validation = result.validation
    if validation.accuracy is not None and validation.majority is not None and config_is_labelled(folder):
        console.print(f"right: {validation.accuracy:.2%}; always the commonest class: {validation.majority:.2%}")
    for figure, value in result.measured.items():
        console.print(f"{figure.replace('_', ' ')}: {value:.4g}")
    console.print(f"curve: {folder / CURVE}")
    if not result.finished:
        console.print(f"go on with: elman train --resume {folder}")
    if result.stopped:
        raise typer.Exit(130)  # So that what was to follow the training does not.
    console.print(f"next: elman export {folder}")


def config_is_labelled(run: Path) -> bool:
    """Whether a run's task has labels, and so an accuracy worth telling."""
    from elman_training.checkpoint import load_labels

    return load_labels(run) is not None


def export(
    run: Annotated[Path, typer.Argument(help="The folder of a training run.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option(help="The bundle's folder to make.", show_default="bundles/NAME")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="The model's name, by which requests choose it.", show_default="the run folder's"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there already.")] = False,
    quantize: Annotated[
        Quantization | None,
        typer.Option(
            help="int8: products in 8-bit integers, several times as fast on a CPU that has instructions for them "
            "(VNNI). The loss on held-out text is shown beside that of float32.",
            show_default="none: float32",
        ),
    ] = None,
) -> None:
    """Export a trained model as a bundle. It is compared with torch first; one that differs is not written."""
    from elman_export import export_run

    chosen = name or run.resolve().name
    folder = output or Path("bundles") / chosen
    console = Console(stderr=True, highlight=False, markup=False)
    digest = export_run(
        run, folder, name=chosen, overwrite=force, quantize="int8" if quantize else None, console=console
    )
    console.print(f"exported {folder}, {digest[:19]}")
    console.print(f"next: elman serve {folder}")
