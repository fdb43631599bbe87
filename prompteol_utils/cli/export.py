"""Subcommands `export`, `mteb` and `serve`: a folder for sentence-transformers, its uses."""

import argparse

from prompteol_utils.cli import options as shared


def add_commands(subcommand) -> None:
    """Register the subcommands; `subcommand(name, function, text)` makes one."""
    export = subcommand("export", _export, "write a folder that stock sentence-transformers loads")
    shared.add(export, "model", "adapter", "dtype", "prompt", "demonstration")
    export.add_argument(
        "--max-tokens",
        type=shared.positive,
        default=512,
        metavar="N",
        help="longest input, prompt included",
    )
    export.add_argument("--normalize", action="store_true", help="vectors of length 1")
    shared.add(export, "output", required=True, metavar="DIR", help="a new folder")

    mteb = subcommand("mteb", _mteb, "run MTEB on an exported folder")
    mteb.add_argument("--model", required=True, metavar="DIR", help="from `prompteol export`")
    mteb.add_argument(
        "--tasks", nargs="+", default=["stsb"], help="sts12 … sts16, stsb, or names of MTEB"
    )
    mteb.add_argument(
        "--hub", action="store_true", help="MTEB's own data from the hub, not SentEval's files"
    )
    shared.add(mteb, "root")

    serve = subcommand("serve", _serve, "serve an exported folder as OpenAI's embeddings endpoint")
    serve.add_argument("--model", required=True, metavar="DIR", help="from `prompteol export`")
    serve.add_argument("--name", help="what clients call it (default: the folder's name)")
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines ask")
    serve.add_argument("--port", type=shared.positive, default=8000, help="to listen at")
    shared.add(serve, "device", default="auto", help="auto, cpu or cuda")


def _export(options: argparse.Namespace) -> int:
    from prompteol_utils.encoder import Encoder
    from prompteol_utils.export import export_sentence_transformer

    loaded, (prompt,) = shared.load(options)
    encoder = Encoder(loaded, prompt, normalize=options.normalize)
    folder = export_sentence_transformer(encoder, options.output, max_tokens=options.max_tokens)
    print(f"{folder}: SentenceTransformer({str(folder)!r}) loads it; README.md is its model card")
    return 0


def _mteb(options: argparse.Namespace) -> int:
    from prompteol_utils.export import evaluate_mteb, local_tasks
    from prompteol_utils.export.benchmark import hub_names

    tasks = (
        hub_names(options.tasks) if options.hub else local_tasks(options.tasks, root=options.root)
    )
    shared.print_table(evaluate_mteb(options.model, tasks))
    return 0


def _serve(options: argparse.Namespace) -> int:
    from prompteol_utils.export import serving

    server = serving.make_server(options.model, name=options.name, device=options.device)
    server.run(host=options.host, port=options.port, generate_client_file=False)
    return 0
