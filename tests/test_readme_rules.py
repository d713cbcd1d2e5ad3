"""The test of the READMEs finds what is wrong with a block, and names its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from .readmes import checking, mongosh
from .readmes.blocks import CHECKED, ROOT, Block, ReadmeError
from .readmes.running import Reader

LINE = 7
CONFIG = {"backend": "mongodb", "url": "mongodb://127.0.0.1:9/", "database": "nothing"}
POD = "spec: {containers: [{name: c, image: i}]}"


def block(language: str, text: str, **notes: str) -> Block:
    return Block(ROOT / "README.md", LINE, language, text, notes)


@pytest.mark.parametrize(
    ("language", "text", "problem"),
    [
        ("console", "deerflow-mongo nosuch\n", "no command 'nosuch'"),
        ("console", "cd x && deerflow-mongo check --nosuch\n", "--nosuch"),
        ("console", "pip install '.[embedded,nosuch]'\n", "no such extra: nosuch"),
        ("console", "uv pip install ./nosuch\n", "no distribution in ./nosuch"),
        ("console", "pytest tests/nosuch.py\n", "no tests at tests/nosuch.py"),
        ("console", "python -m benchmarks.nosuch\n", "no module benchmarks.nosuch"),
        ("console", "python -m tests.faults --nosuch 1\n", "no option --nosuch"),
        ("console", "nosuch --all\n", "'nosuch' is no known program"),
        ("console", "echo 'open\n", "unexpected EOF"),
        ("console", "mongodump --uri 'mongodb://a:b@host/d?w=0'\n", "the URI"),
        ("yaml", "storage: {backend: mongodb, urll: mongodb://host}\n", "urll"),
        ("yaml", "services: {gateway: {ports: []}}\n", "the service gateway has no image"),
        ("yaml", "services: {a: {image: i, volumes: ['data:/data']}}\n", "which is not declared"),
        ("yaml", f"apiVersion: v1\nkind: Pod\n{POD}\n", "no metadata.name"),
        (
            "yaml",
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n"
            "spec:\n  selector: {matchLabels: {a: b}}\n"
            f"  template:\n    metadata: {{labels: {{a: c}}}}\n    {POD}\n",
            "does not match the labels",
        ),
        ("dockerfile", "FORM base\n", "'FORM' is no instruction"),
        ("dockerfile", "FROM base\nRUN pip install '/opt/deerflow-mongo[nosuch]'\n", "no such extra"),
        ("javascript", "db.runs.nosuch()\n", "nosuch is not a function"),
        ("toml", "a = \n", "malformed"),
        ("json", "{a}", "malformed"),
    ],
)
def test_checked_block_with_a_mistake_is_reported(language: str, text: str, problem: str) -> None:
    with pytest.raises(ReadmeError, match=f"(?s)^README.md:{LINE}: .*") as raised:
        checking.check(block(language, text, **{CHECKED: "a reason"}))
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("language", "text"), [("dockerfile", "FROM base\n"), ("yaml", "services: {a: {image: i}}\n")]
)
def test_file_for_docker_needs_a_reason(language: str, text: str) -> None:
    with pytest.raises(ReadmeError, match="give the reason"):
        checking.check(block(language, text))


def test_reason_names_a_test_that_exists() -> None:
    with pytest.raises(ReadmeError, match=r"tests/nosuch\.py, which does not exist"):
        checking.check(block("console", "ls\n", **{CHECKED: "tests/nosuch.py runs it"}))


def test_executed_blocks_share_a_folder_and_each_failure_has_its_line(tmp_path: Path) -> None:
    blocks = [
        block("console", "export GREETING=hello\nmkdir sub && cd sub\n"),
        block("python", "# words.py\nimport os\n\nGREETING = os.environ['GREETING']\n"),
        block("python", "import words\n\nprint(words.GREETING, 'world')\n"),
        block("text", "hello ...\n"),
        block("console", "true\nfalse\ntouch never\n"),
        block("text", "not this\n"),
        block("python", "raise SystemExit('broken')\n"),
    ]
    problems = [str(problem) for problem in Reader(tmp_path / "reader", CONFIG).follow(blocks)]
    assert len(problems) == 3, problems
    assert f"line {LINE + 1}: false" in problems[0]
    assert "not in the output: not this" in problems[1]
    assert "broken" in problems[2]
    assert not list((tmp_path / "reader").rglob("never"))


def test_stand_in_for_mongosh_sends_what_mongosh_would() -> None:
    create_user = 'db.getSiblingDB("a").createUser({ user: "u", pwd: passwordPrompt(), roles: [] })'
    user, find = mongosh.commands_of(f"{create_user}\ndb.c.find({{ x: 1 }}).limit(2)", "b")
    assert (user.database, user.command["createUser"]) == ("a", "u")
    assert (find.database, find.command["find"], find.command["limit"]) == ("b", "c", 2)
