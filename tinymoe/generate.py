"""python -m tinymoe.generate: let a trained model write.

Prints the prompt and then each character as soon as the model has chosen it.
"""

import argparse
import sys

import numpy as np

from .errors import Parser, UserError, named_path, run
from .models.sampling import decoded, generate
from .runs.folder import MODEL
from .runs.state import load_model


def parser() -> Parser:
    parser = Parser(
        prog="python -m tinymoe.generate",
        description=(__doc__ or "").partition(": ")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=named_path, metavar="DIR", help="the folder of a training run")
    parser.add_argument(
        "--prompt", default="\n", metavar="TEXT", help="what the text begins with (default: a new line)"
    )
    parser.add_argument("--tokens", type=int, default=300, metavar="N", help="how many bytes to write (default: 300)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        metavar="X",
        help="divides the scores of the bytes before one is drawn: below 1 the likeliest come more often (at 0 always, "
        "whatever the seed), at 1 as often as the model expects them, above 1 unlikely ones come more often (default: 0.8)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=0.95,
        metavar="P",
        help="choose among the most likely bytes that together have this probability (default: 0.95)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="draws the text (default: 0)")
    parser.add_argument(
        "--csr",
        action="store_true",
        help="compute with the sparse matrices of a model trained with "
        "--sparsity as they are stored, instead of filling in the zeros",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.tokens < 0 or args.seed < 0:
        raise UserError(f"--tokens is {args.tokens} and --seed {args.seed}; both must be 0 or more")
    if not 0 <= args.temperature < float("inf"):
        raise UserError(f"--temperature is {args.temperature}; it must be 0 or a positive number")
    if not 0 < args.top_p <= 1:
        raise UserError(f"--top-p is {args.top_p}; it must be above 0 and at most 1")
    if not args.prompt:
        raise UserError("--prompt is empty; the model needs something to go on, if only a new line")

    params, config = load_model(args.folder / MODEL, keep_sparse=args.csr)
    prompt = np.frombuffer(args.prompt.encode("utf-8", "surrogateescape"), np.uint8).astype(np.int64)
    if config.vision is not None:
        raise UserError(f"{args.folder} holds a model that captions pictures; its captions are in sample.txt")
    if config.vocabulary != 256:
        raise UserError(
            f"the model has a vocabulary of {config.vocabulary}; only those over bytes (256) can be prompted"
        )
    tokens = generate(
        params, config, prompt, args.tokens, args.temperature, args.top_p, np.random.default_rng(args.seed)
    )
    sys.stdout.write(args.prompt)
    for text in decoded(tokens):
        sys.stdout.write(text)
        sys.stdout.flush()
    print()
    return 0


if __name__ == "__main__":
    run(main)
