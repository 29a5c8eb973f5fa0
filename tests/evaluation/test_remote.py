"""Sets that are streamed: the figures of the same sets on disk, and clear errors."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from growclip_ds.config.set_names import set_name
from growclip_ds.data import remote_stream
from growclip_ds.errors import InputError
from growclip_ds.evaluation import ClassificationSet, RetrievalSet, evaluate, load_evaluation_set
from growclip_ds.evaluation.source import Source
from tests.evaluation import sets
from tests.evaluation.served import Quiet, serve
from tests.group import Groups

LABELS = [3, 1, 4, 1, 5, 0, 2, 6, 5, 3, 5]
CAPTIONS = ["one", "two\nzwei", "three", "four\nvier\nquattro", "five"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    sets.write_classification_set(folder / "things", LABELS, [4, 0, 7])
    pairs = [(sets.encoded(sets.picture(i)), text) for i, text in enumerate(CAPTIONS)]
    sets.write_set(folder / "pairs", "retrieval", pairs, [4, 1])
    return folder


@pytest.fixture(scope="module")
def host(folder: Path) -> Iterator[str]:
    with serve(folder) as host:
        yield host


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_stream, "PAUSE", 0.0)


def evaluate_on_rank(locations: list[str]) -> list:
    loaded = [load_evaluation_set(location) for location in locations]
    return [evaluate(sets.KnownEncoder(), dataset, sets.tokenize, sets.SIZE, 3) for dataset in loaded]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_figures_are_those_of_the_sets_on_disk(folder: Path, host: str, group: Groups, ranks: int) -> None:
    names = ["things", "pairs"]
    local = evaluate_on_rank([str(folder / name) for name in names])
    streamed = [f"{host}/{name}" for name in names]
    assert group(ranks).run(evaluate_on_rank, streamed) == [local] * ranks  # of 3 ranks, one has no tar of pairs


def test_a_command_streams_too(folder: Path) -> None:
    dataset = load_evaluation_set(f"pipe:cat {folder}/things/{{}}")
    assert isinstance(dataset, ClassificationSet)
    assert (dataset.name, dataset.samples, len(dataset.shards)) == ("things", None, 3)
    local = evaluate_on_rank([str(folder / "things")])[0]
    assert evaluate(sets.KnownEncoder(), dataset, sets.tokenize, sets.SIZE, 3) == local


def test_identity_is_of_the_addresses(folder: Path, host: str) -> None:
    of = {location: load_evaluation_set(location).identity for location in (f"{host}/things", f"{host}/pairs")}
    assert len(set(of.values())) == 2
    assert load_evaluation_set(f"{host}/things/").identity == of[f"{host}/things"]


@pytest.mark.parametrize(
    ("location", "name", "file"),
    [
        (
            "https://huggingface.co/datasets/a/wds_food",
            "wds_food",
            "https://huggingface.co/datasets/a/wds_food/resolve/main/x",
        ),
        (
            "https://user:to:ken@huggingface.co/datasets/a/b",
            "b",
            "https://user:to:ken@huggingface.co/datasets/a/b/resolve/main/x",
        ),
        ("https://huggingface.co/datasets/a/b/tree/v2/", "b", "https://huggingface.co/datasets/a/b/resolve/v2/x"),
        ("https://huggingface.co/datasets/a/b/resolve/v2", "b", "https://huggingface.co/datasets/a/b/resolve/v2/x"),
        ("https://host/sets/food/", "food", "https://host/sets/food/x"),
        ("gs://sets/tree/oak", "oak", "gs://sets/tree/oak/x"),  # no revision of a hub's
        ("pipe:aws s3 cp s3://sets/food/{} -", "food", "pipe:aws s3 cp s3://sets/food/x -"),
        ("sets/food/", "food", "sets/food/x"),
    ],
)
def test_where_the_files_of_a_set_are(location: str, name: str, file: str) -> None:
    source = Source(location)
    assert (set_name(location), source.address("x")) == (name, file)


def spoil(folder: Path, file: str, change: Callable[[Path], object]) -> Path:
    copy = folder.parent / "spoilt"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    change(copy / file)
    return copy


BAD_SAMPLE = [("s9.png", sets.encoded(sets.picture(2))), ("s9.cls", b"7")]
SPOILT = {
    "class names missing": ("classnames.txt", Path.unlink, r"http.*classnames\.txt: no such file.*one class name per"),
    "number of shards missing": ("test/nshards.txt", Path.unlink, r"nshards\.txt: no such file; it must state"),
    "first shard missing": ("test/0.tar", Path.unlink, r"http.*0\.tar: .*check that it can be fetched"),
    "other shard missing": ("test/2.tar", Path.unlink, r"http.*2\.tar: .*check that it can be fetched"),
    "other shard cut off": ("test/2.tar", lambda file: file.write_bytes(file.read_bytes()[:2100]), r"http.*2\.tar: "),
    "label too large": (
        "test/2.tar",
        lambda file: sets.write_tar(file, BAD_SAMPLE),
        r"2\.tar: sample s9: its class is 7",
    ),
    "label missing": ("test/2.tar", lambda file: sets.write_tar(file, BAD_SAMPLE[:1]), r"2\.tar: sample s9: no class"),
    "nothing in it": (
        "test/0.tar",
        lambda file: sets.write_tar(file, []),
        r"0\.tar: no samples of evaluation set spoilt",
    ),
}


@pytest.mark.parametrize(("file", "change", "message"), SPOILT.values(), ids=SPOILT)
def test_what_cannot_be_streamed_is_one_clear_error(
    folder: Path, tmp_path: Path, file: str, change: Callable[[Path], object], message: str
) -> None:
    shutil.copytree(folder / "things", tmp_path / "things")
    spoil(tmp_path / "things", file, change)
    with serve(tmp_path) as host, pytest.raises(InputError, match=message):
        evaluate_on_rank([f"{host}/spoilt"])


def error_on_rank(location: str) -> str:
    try:
        evaluate_on_rank([location])
    except InputError as error:
        return str(error)
    return ""


def test_an_error_on_one_rank_ends_all(folder: Path, tmp_path: Path, group: Groups) -> None:
    shutil.copytree(folder / "things", tmp_path / "things")
    spoil(tmp_path / "things", *SPOILT["label too large"][:2])
    with serve(tmp_path) as host:
        first, second = group(2).run(error_on_rank, f"{host}/spoilt")
    assert first == second
    assert "sample s9: its class is 7" in first


def test_a_command_has_to_say_where_the_path_goes() -> None:
    with pytest.raises(InputError, match=r"pipe:cat x: put \{\} where the path"):
        load_evaluation_set("pipe:cat x")


def test_a_host_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    with serve(tmp_path) as host:
        pass
    with pytest.raises(
        InputError, match=rf"{host}/things/dataset_type\.txt: cannot be read .*check that it can be fetched"
    ):
        load_evaluation_set(f"{host}/things")


def test_a_remote_retrieval_set_says_so(host: str) -> None:
    assert isinstance(load_evaluation_set(f"{host}/pairs"), RetrievalSet)


class Difficult(Quiet):
    """Wants a password; has no time for the first request of one file, and sends half of another, once."""

    def do_GET(self) -> None:
        requests = self.server.requests
        first = self.path not in requests
        requests.append(self.path)
        if self.headers["Authorization"] != f"Basic {base64.b64encode(b'me:p@ss').decode()}":
            self.send_error(401)
        elif first and self.path.endswith("/classnames.txt"):
            self.send_error(429)
        elif first and self.path.endswith("/zeroshot_classification_templates.txt"):
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:9])
        else:
            super().do_GET()


def test_text_files_are_fetched_as_tars_are(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "things", tmp_path / "my sets" / "things")
    with serve(tmp_path, Difficult) as host:
        address = f"{host.replace('http://', 'http://me:p%40ss@')}/my sets/things"
        assert evaluate_on_rank([address]) == evaluate_on_rank([str(tmp_path / "my sets" / "things")])
        with pytest.raises(
            InputError, match=r"dataset_type\.txt: cannot be read \(HTTP 401 .*check that it can be fetch"
        ):
            load_evaluation_set(f"{host}/my sets/things")


@pytest.mark.parametrize("address", ["http://host:port/set", "http://[host/set"])
def test_what_is_no_address_is_an_error(address: str) -> None:
    with pytest.raises(InputError, match=r"\.txt: cannot be read .*check that it can be fetched"):
        load_evaluation_set(address)


def test_a_command_that_fails_once_is_run_again(folder: Path, tmp_path: Path) -> None:
    """A set of captions without its `dataset_type.txt` would be one of classes."""
    once = f"at={tmp_path}/$(basename {{}}); test -e $at || {{ touch $at; exit 1; }}; cat"
    assert isinstance(load_evaluation_set(f"pipe:{once} {folder}/pairs/{{}}"), RetrievalSet)


def test_a_command_fails_where_a_set_has_no_type(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder / "things", tmp_path / "things")
    (copy / "dataset_type.txt").unlink()
    assert isinstance(load_evaluation_set(f"pipe:cat {copy}/{{}}"), ClassificationSet)
    (copy / "classnames.txt").unlink()
    with pytest.raises(
        InputError, match=r"classnames\.txt: cannot be read \(its command ended with exit code 1\); check"
    ):
        load_evaluation_set(f"pipe:cat {copy}/{{}}")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("s3://sets/food", r"s3://sets/food/\S+\.txt: aws, which fetches it, is not installed; install it"),
        ("gs://sets/food", r"gs://sets/food/\S+\.txt: gsutil, which fetches it, is not installed"),
        ("pipe:missing-program {}", r"\.txt: cannot be read \(a program of its command was not found\)"),
    ],
)
def test_a_program_that_is_not_installed_is_said(
    location: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=message):
        load_evaluation_set(location)
