"""Embed a corpus in shards, by one process or by Ray Data's actors; it resumes shard by shard.

    python benchmarks/ray_encode.py --model M --input SHARDS --output VECTORS             # here
    python benchmarks/ray_encode.py --model M --input SHARDS --output VECTORS --workers 8 --gpus 1

SHARDS is a folder of Parquet files with a column `sentence`, VECTORS gets one file for each. A
worker reads a shard, embeds it, and renames the finished file, so that a file that is there is
whole: to resume is to skip it. On a cluster both folders are on storage that all machines see.
Ray comes with the extra `scale`.
"""

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
MISSING = "several workers need the package ray: pip install prompteol-utils[scale]"


class ShardEncoder:
    """One worker: loads the model once, then embeds a shard a call.

    Args:
        settings: Of `Encoder.from_pretrained`.
        output: Folder for the vectors.
    """

    def __init__(self, settings: dict, output: str):
        from prompteol_utils import Encoder

        self.encoder = Encoder.from_pretrained(**settings)
        self.output = Path(output)
        self._check_owner()

    def _check_owner(self) -> None:
        """Refuse a folder with the vectors of another encoder."""
        from prompteol_utils.utils import files

        key = json.dumps(self.encoder.key, sort_keys=True)
        with files.lock(self.output / ".encoder.lock"):
            if not (file := self.output / "encoder.json").exists():
                file.write_text(key)
        if file.read_text() != key:
            raise ValueError(f"{self.output} holds vectors of another encoder; choose another one")

    def __call__(self, batch: dict) -> dict:
        """Embed the shards of a batch; returns their names and sizes."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from prompteol_utils.utils import files

        sizes = []
        for name in batch["shard"]:
            sentences = pq.read_table(str(name))["sentence"].to_pylist()
            vectors = self.encoder.encode(sentences, show_progress_bar=False)
            flat = pa.array(vectors.ravel(), pa.float32())
            column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
            with files.atomic_file(self.output / Path(str(name)).name) as target:
                pq.write_table(pa.table({"sentence": sentences, "embedding": column}), target)
            sizes.append(len(sentences))
        return {"shard": batch["shard"], "n": sizes}


def unfinished(source: Path, output: Path) -> list[str]:
    """The shards that have no vectors yet."""
    return [
        str(path) for path in sorted(source.glob("*.parquet")) if not (output / path.name).exists()
    ]


def embed(settings: dict, source: Path, output: Path, workers: int = 0, gpus: float = 0) -> dict:
    """Embed what is unfinished; 0 workers: in this process, without Ray."""
    output.mkdir(parents=True, exist_ok=True)
    shards, start = unfinished(source, output), time.perf_counter()
    if not shards:
        return {"n": 0, "shards": 0, "start_seconds": 0.0, "seconds": 0.0}
    if workers == 0:
        worker = ShardEncoder(settings, str(output))
        started = time.perf_counter() - start
        sizes = [worker({"shard": [shard]})["n"][0] for shard in shards]
    else:
        try:
            import ray
        except ImportError as error:
            raise SystemExit(MISSING) from error
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False
        started = time.perf_counter() - start
        rows = ray.data.from_items(
            [{"shard": shard} for shard in shards], override_num_blocks=len(shards)
        )
        resources = {"num_gpus": gpus} if gpus else {"num_cpus": 0.5}  # tasks need room, too
        pool = ray.data.ActorPoolStrategy(size=workers)
        options = {"fn_constructor_args": (settings, str(output)), "batch_size": 1, "compute": pool}
        found = rows.map_batches(ShardEncoder, **options, **resources).take_all()
        sizes = [row["n"] for row in found]
        ray.shutdown()
    seconds = time.perf_counter() - start
    return {"n": sum(sizes), "shards": len(sizes), "start_seconds": started, "seconds": seconds}


def main(arguments=None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--adapter")
    parser.add_argument("--dtype")
    parser.add_argument("--input", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--workers", type=int, default=0, help="actors; 0: this process, no Ray")
    parser.add_argument("--gpus", type=float, default=0, help="of each actor")
    options = parser.parse_args(arguments)
    settings = {"name_or_path": options.model, "adapter": options.adapter, "dtype": options.dtype}
    print(json.dumps(embed(settings, options.input, options.output, options.workers, options.gpus)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
