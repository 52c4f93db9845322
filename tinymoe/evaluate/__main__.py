"""python -m tinymoe.evaluate: what a trained model is worth, and what it costs.

Accuracy: loss, perplexity and next-token accuracy on the validation text. Generalisation: the same on text that it was
trained on, and on text of another domain. Complexity: parameters, operations and time per token.

Source: 《稀疏专家模型》 §9.5.
"""

import argparse
import json

from ..errors import Parser, UserError, named_path, run, say
from ..runs.files import check_writable, write_named
from .captions import caption_report
from .text import language_report
from .trained import load_run, other_texts


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m tinymoe.evaluate",
        description=(__doc__ or "").partition(": ")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=named_path, metavar="DIR", help="the folder of a training run")
    parser.add_argument(
        "--corpus",
        action="append",
        default=[],
        metavar="TEXT",
        help="text of another domain: pydoc, toy, docstrings:PACKAGE, or a UTF-8 text file or folder; repeat the flag for "
        "several (default: toy and pydoc, as far as the model was not trained on them)",
    )
    parser.add_argument("--json", type=named_path, metavar="FILE", help="also write the numbers to a file")
    parser.add_argument(
        "--windows",
        type=int,
        metavar="N",
        help="measure on at most so many windows of each text, evenly spread (default: all of the validation text), or, of a "
        "captioning model, so many pictures of each kind (default: 400)",
    )
    given = parser.parse_args(argv)
    if given.windows is not None and given.windows < 1:
        raise UserError(f"--windows is {given.windows}; it must be at least 1")
    if given.json:
        check_writable(given.json)
    work = load_run(given.folder)
    if work.settings.data.task == "caption":
        if given.corpus:
            raise UserError(f"{given.folder} holds a model of captions, which has no use for --corpus; leave it out")
        report = caption_report(work, given.windows)
    else:
        report = language_report(work, other_texts(given.corpus, work), given.windows)
    say(report.table())
    if given.json:
        write_named(given.json, (json.dumps(report.plain(), ensure_ascii=False, indent=2) + "\n").encode())
    return 0


if __name__ == "__main__":
    run(main, patient=True)
