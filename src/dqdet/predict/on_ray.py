"""Many images, predicted by all machines of a Ray cluster, shard by shard.

Ray Data gives the shards to actors, of which each loads the model once; what they find comes back and is written by
this process, a file for each shard. So the machines need no common disk for the results, and the same command goes on
where it was stopped, without the shards that are done. Images are read where they are predicted: from a store
(``s3://``, ``gs://``), an address, or a path that is the same on all machines.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import signal
import socket
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from dqdet.config import Precision
from dqdet.errors import DqdetError, Interrupted
from dqdet.formats.image_files import one_line
from dqdet.formats.remote import public
from dqdet.formats.results import GrowingList, IouType, coco_results
from dqdet.formats.writing import move_files, replacing, unfinished_folder
from dqdet.predict.images import found_in
from dqdet.predict.output import RESULTS, described
from dqdet.predict.predictor import Predictor, objects
from dqdet.predict.progress import Tally
from dqdet.predict.stores import Job, jobs_of, read_job
from dqdet.runs.libraries import versions
from dqdet.runs.lock import held
from dqdet.runs.sources import weights_of

SHARD = 256  # images
ENOUGH = 10  # that kill their workers, before something else is tried
KILLED = "most likely for lack of memory"
MISSING = "`--engine ray` needs Ray Data: pip install 'dqdet[ray]'"


@dataclass(frozen=True)
class Loading:
    """How each actor loads the model.

    Attributes:
        load: gives the predictor; ``dqdet.load`` with the model's source.
        named: what decides about results, for the plan.
    """

    load: Callable[[], Predictor]
    named: dict[str, Any] = field(default_factory=dict)


def loading(
    load: Callable[..., Predictor], source: str, precision: Precision, compile: bool, overrides: dict[str, Any]
) -> Loading:
    """That of ``load``, which is ``dqdet.load``; files of a model that change make it another one."""
    source = str(Path(source).resolve()) if Path(source).exists() else source
    named = {"model": source, "files": weights_of(source), "precision": precision, "options": overrides}
    return Loading(partial(load, source, precision=precision, compile=compile, **overrides), named)


class Tries:
    """How often each shard was begun, as an actor that outlives those who are killed by one."""

    def __init__(self) -> None:
        self.of_shards: Counter[int] = Counter()

    def begin(self, shard: int) -> int:
        self.of_shards[shard] += 1
        return self.of_shards[shard]


def _begin(tries: Any, shard: int) -> int:
    import ray

    return int(ray.get(tries.begin.remote(shard)))


class ShardPredictor:
    """What an actor does: it loads the model, and looks at shards.

    A shard becomes a list with an entry for each image: its ``id``, ``file_name``, ``width``, ``height``, ``results``
    as COCO's results files have them, and ``error``: why it could not be read (then there is nothing else), or null.
    Ray gives a shard to workers until one of them survives it, which may be never.

    Args:
        load: gives the model.
        expected: versions of libraries, by name.
        begin: says how often a shard was begun, this time included.
        tries: how often it may be.

    Raises:
        DqdetError: this machine has other versions.
    """

    def __init__(
        self, load: Callable[[], Predictor], expected: Mapping[str, str], begin: Callable[[int], int], tries: int
    ) -> None:
        host = socket.gethostname()
        for name, here in versions().items():
            if here != (there := expected.get(name)):
                raise DqdetError(f"{name} is {here} on {host}, but {there} where the command runs; make it the same")
        self.predictor, self.begin, self.tries = load(), begin, tries

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """A shard, its ``jobs`` as JSON; the same of ``found``, which is null where other workers were killed by it."""
        (shard,), (jobs,) = batch["shard"], batch["jobs"]
        survived = self.begin(int(shard)) <= self.tries
        found = self.of_shard([Job(*job) for job in json.loads(jobs)]) if survived else None
        return {"shard": [shard], "found": [json.dumps(found)]}

    def of_shard(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        entries: dict[int, dict[str, Any]] = {}

        def failed(job: Job, error: DqdetError) -> None:
            entries[job.image_id] = {"id": job.image_id, "file_name": job.name, "error": str(error)}

        tally = Tally("images", "objects")
        for (job, image, _), outcome in found_in(self.predictor, jobs, read_job, failed, None, tally):
            found = objects(outcome)
            iou_type: IouType = "bbox" if found.masks is None else "segm"
            entries[job.image_id] = {
                **{"id": job.image_id, "file_name": job.name, "width": image.width, "height": image.height},
                "results": coco_results(job.image_id, found, self.predictor.category_ids, iou_type),
                "error": None,
            }
        return [entries[job.image_id] for job in jobs]


def predict_on_ray(
    model: Loading,
    sources: Sequence[str],
    out: Path,
    annotations: Path | None = None,
    force: bool = False,
    actors: int | None = None,
    shard: int = SHARD,
    say: Callable[[str], None] = lambda line: None,
) -> int:
    """Detect in images on a cluster of Ray, and write into ``out``:

    - ``results.json`` and ``images.json`` as `predict` does, without pictures,
    - ``errors.json``: of each image that could not be read its ``file_name`` and ``error``,
    - ``shards``: what was found in each, see `ShardPredictor`.

    What the environment variable ``RAY_ADDRESS`` names is the cluster, otherwise this machine is one.

    Args:
        model: of boxes or masks of instances.
        sources: files, folders, patterns and addresses, also of stores, of images.
        out: folder to write to; where it has shards of the same images, model and options, they are not done again.
        annotations: file in COCO's format that has the ids of the images.
        force: remove what ``out`` has of others.
        actors: that load the model; by default one for each GPU, or, without these, for each machine.
        shard: images of a task.
        say: is given a line on what was done.

    Returns:
        how many images could not be read.

    Raises:
        DqdetError: Ray is missing or fails, there are no images, the model is none of boxes or masks, or ``out`` has
            other results.
        Interrupted: by Ctrl-C or SIGTERM; the shards that were done stay.
    """
    predictor = model.load()  # here too, so that what is wrong with it is said at once
    if (task := predictor.config.data.task) not in ("detection", "instance"):
        raise DqdetError(f"--engine ray is for boxes and masks of instances, not data.task={task}; leave it out")
    categories = predictor.categories
    del predictor
    jobs = jobs_of(sources, out, annotations)
    shards = [jobs[start : start + shard] for start in range(0, len(jobs), shard)]
    folder = out / "shards"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with held(out):
            _plan(out, folder, {**model.named, "shard": shard, "jobs": _digest(jobs)}, force)
            left = [number for number in range(len(shards)) if not _file(folder, number).is_file()]
            try:
                with closing(_found(model, {number: shards[number] for number in left}, actors)) as coming:
                    for number, entries in coming:
                        with replacing(_file(folder, number)) as unfinished:
                            unfinished.write_text(json.dumps(entries))
            except KeyboardInterrupt as error:
                done = sum(_file(folder, number).is_file() for number in range(len(shards)))
                raise Interrupted(
                    f"stopped; {done} of {len(shards)} shards are done, the same command does the others: {out}"
                ) from error
            done_shards = [_file(folder, number) for number in range(len(shards))]
            failed = _merge(out, done_shards, sources, model.named.get("model"), categories)
    except OSError as error:
        raise DqdetError(f"{out}: cannot be written ({error}); choose another folder or make space") from error
    say(f"{out}: {len(jobs) - failed} images in {len(shards)} shards, {len(shards) - len(left)} of them done before")
    return failed


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06}.json"


def _digest(jobs: Sequence[Job]) -> str:
    return hashlib.blake2b(json.dumps(jobs).encode(), digest_size=16).hexdigest()


def _plan(out: Path, folder: Path, plan: dict[str, Any], force: bool) -> None:
    """Write what the shards in a folder are of, or raise DqdetError where they are of something else."""
    file = folder / "plan.json"
    text = json.dumps(plan, sort_keys=True, default=str)
    if file.is_file() and file.read_text() == text:
        return
    if not force and (folder.exists() or any((out / name).exists() for name in RESULTS)):
        raise DqdetError(
            f"{out}: has results of other images, another model or other options; choose another folder, or overwrite "
            "them with --force"
        )
    if folder.exists():
        shutil.rmtree(folder)
    with replacing(file) as unfinished:
        unfinished.write_text(text)


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, with its own messages turned down; what was started here ends here."""
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise DqdetError(MISSING) from error
    started = not ray.is_initialized()
    if started:
        on_termination = signal.getsignal(signal.SIGTERM)
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, on_termination)  # Ray has taken it
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    except ray.exceptions.RayError as error:
        raise DqdetError(f"Ray has failed ({one_line(error)[-500:]}); the shards that are done stay") from error
    finally:
        if started:
            ray.shutdown()


def _found(
    model: Loading, shards: Mapping[int, list[Job]], actors: int | None
) -> Generator[tuple[int, list[dict[str, Any]]], None, None]:
    """What is found in shards, in whatever order they are done: an entry for each image.

    The images of shards whose workers were killed, mostly for lack of memory, are looked at one by one. So an image
    that no worker survives costs neither the others nor an endless row of workers.

    Raises:
        DqdetError: whatever workers look at kills them, or they fail.
    """
    if not shards:
        return
    left = dict(shards)
    with _cluster() as ray:
        while left:
            lost = []
            with closing(_run(ray, model, left.copy(), actors, tries=1)) as coming:
                for number, entries in coming:
                    if entries is None:
                        lost.append(number)
                    else:
                        del left[number]
                        yield number, entries
                    if len(lost) == ENOUGH:  # before more are killed
                        break
            alone = dict(enumerate([job] for number in lost for job in left[number]))
            found: dict[int, list[dict[str, Any]] | None] = {}
            with closing(_run(ray, model, alone, actors, tries=2)) as coming:
                for index, entries in coming:
                    found[index] = entries
                    if len(found) == ENOUGH and not any(found.values()):
                        raise DqdetError(f"all workers were killed, {KILLED}; give them more, or take a smaller model")
            in_order = (found[index] or [_without_survivors(job)] for index, (job,) in alone.items())
            for number in lost:
                yield number, [entry for (entry,) in islice(in_order, len(left.pop(number)))]


def _without_survivors(job: Job) -> dict[str, Any]:
    error = f"{public(job.place)}: every worker that looked at it was killed, {KILLED}; give a smaller one"
    return {"id": job.image_id, "file_name": job.name, "error": error}


def _run(
    ray: Any, model: Loading, shards: Mapping[int, list[Job]], actors: int | None, tries: int
) -> Generator[tuple[int, list[dict[str, Any]] | None], None, None]:
    """What workers find in shards; None for one that has killed so many of them."""
    if not shards:
        return
    rows = [{"shard": number, "jobs": json.dumps(jobs)} for number, jobs in shards.items()]
    gpus = int(ray.cluster_resources().get("GPU", 0))
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    count = actors or gpus or len(machines)
    # Without GPUs an actor has a machine, or its share of one: Ray tells PyTorch to take so many threads.
    cpus = sum(int(machine["CPU"]) for machine in machines)
    needed = {"num_gpus": 1} if gpus else {"num_cpus": max(1, cpus // max(count, len(machines)))}
    counting = ray.remote(num_cpus=0)(Tries).remote()
    found = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        ShardPredictor,
        fn_constructor_args=(model.load, versions(), partial(_begin, counting), tries),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=min(count, len(rows))),
        **needed,
    )
    for row in found.iter_rows():
        yield int(row["shard"]), json.loads(row["found"])


def _merge(
    out: Path, files: Sequence[Path], sources: Sequence[str], model: str | None, categories: list[dict[str, Any]]
) -> int:
    """Put the files of `predict` together; returns how many images could not be read."""
    failed = 0
    with unfinished_folder(out) as folder:
        results = GrowingList(folder / "results.json")
        images = GrowingList(folder / "images.json", "images", info=described(sources, model), categories=categories)
        errors = GrowingList(folder / "errors.json")
        for file in files:
            for entry in json.loads(file.read_text()):
                if entry["error"] is not None:
                    errors.extend([{"file_name": entry["file_name"], "error": entry["error"]}])
                    failed += 1
                    continue
                results.extend(entry["results"])
                images.extend([{key: entry[key] for key in ("id", "file_name", "width", "height")}])
        for one in (results, images, errors):
            one.finish()
        move_files(folder, out)
    return failed
