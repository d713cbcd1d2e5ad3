"""Configuration: accepted options, the error for each mistake, and that no error text has a password."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from deerflow_mongo import (
    MissingDependencyError,
    MongoConfig,
    MongoStorage,
    StorageConfigError,
    create_storage,
    load_config,
)
from deerflow_mongo.mongodb.config import mongo_config, redacted
from deerflow_mongo.mongodb.schema import RETENTIONS

URL = "mongodb://127.0.0.1:27017"
SECRET = "s3cr%40t-pass"  # noqa: S105 - made up
SECRET_URL = f"mongodb://user:{SECRET}@127.0.0.1:1/?serverSelectionTimeoutMS=100"


def test_defaults() -> None:
    config = mongo_config({"url": URL})
    assert (config.database, config.driver, config.collection_prefix, config.timeout_ms) == (
        "deerflow",
        "pymongo",
        "",
        25_000,
    )


def test_options_override_the_database_and_timeout_of_the_uri() -> None:
    from_uri = mongo_config({"url": URL + "/own?timeoutMS=700"})
    assert (from_uri.database, from_uri.timeout_ms) == ("own", 700)
    selection_timeout = mongo_config({"url": URL + "/?serverSelectionTimeoutMS=200"})
    assert selection_timeout.timeout_ms == 25_000
    assert mongo_config({"url": URL + "/?timeoutMS=0"}).timeout_ms == 25_000
    overridden = mongo_config({"url": URL + "/own?timeoutMS=700", "database": "other", "timeout_ms": 90})
    assert (overridden.database, overridden.timeout_ms) == ("other", 90)


@pytest.mark.parametrize(
    "url",
    [
        "mongodb+srv://user:pass@cluster0.example.net/db?retryWrites=true",
        "mongodb://u:p%40ss@a:1,b:2,c:3/?replicaSet=rs&tls=true&readPreference=primary",
        "mongodb://%2Ftmp%2Fmongodb.sock/db",
        "mongodb://[::1]:27017",
        "embedded",
    ],
)
def test_any_mongodb_uri_is_accepted_without_connecting(url: str) -> None:
    storage = create_storage({"backend": "mongodb", "url": url})
    assert "MongoStorage" in repr(storage)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`url` is missing"),
        ({"url": ""}, "`url` is missing"),
        ({"url": "localhost"}, "not a valid MongoDB URI"),
        ({"url": "mongodb://"}, "not a valid MongoDB URI"),
        ({"url": "postgresql://h/db"}, "not a valid MongoDB URI"),
        ({"url": "mongodb://h:port"}, "not a valid MongoDB URI"),
        ({"url": "mongodb+srv://a.example.net:27017"}, "no port"),
        ({"url": "mongodb+srv://a.example.net,b.example.net"}, "one host name"),
        ({"url": URL + "/?w=0"}, "w=0"),
        ({"url": URL + "/?tls=perhaps"}, "not a valid MongoDB URI"),
        ({"url": 5}, "`url`"),
        ({"url": URL, "driver": "oracle"}, "`driver`.*'pymongo', 'motor' or 'mongomock'"),
        ({"url": URL, "databse": "x"}, "unknown key `databse`; expected one of .*database"),
        ({"url": URL, "tls": True}, "unknown key `tls`"),
        ({"url": URL, "timeout_ms": 0}, "`timeout_ms`"),
        ({"url": URL, "timeout_ms": -5}, "`timeout_ms`"),
        ({"url": URL, "timeout_ms": "soon"}, "`timeout_ms`"),
        ({"url": URL, "database": "a.b"}, "`database`"),
        ({"url": URL, "database": "x" * 64}, "`database`"),
        ({"url": URL, "collection_prefix": "a$b"}, "`collection_prefix`"),
        ({"url": URL, "data_dir": "/data"}, "`data_dir` goes with `url: embedded`"),
        ({"url": URL, "mongod_path": "/usr/bin/mongod"}, "`mongod_path` goes with `url: embedded`"),
    ],
)
def test_error_names_the_wrong_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StorageConfigError, match=message):
        create_storage({"backend": "mongodb", **options})


def test_config_object_fills_the_documented_defaults_and_validates_itself() -> None:
    """A `MongoConfig` built directly behaves as one built from a mapping."""
    config = MongoConfig(url=URL)
    assert (config.database, config.timeout_ms) == ("deerflow", 25_000)
    from_uri = MongoConfig(url=URL + "/own?timeoutMS=700")
    assert (from_uri.database, from_uri.timeout_ms) == ("own", 700)
    assert MongoConfig(url="embedded").timeout_ms == 25_000
    assert MongoConfig(driver="mongomock").database == "deerflow"
    mistakes: tuple[dict[str, Any], ...] = (
        {"url": "not a url at all"},
        {"url": URL + "/?w=0"},
        {"url": URL, "databse": "x"},
    )
    for options in mistakes:
        with pytest.raises(StorageConfigError):
            MongoConfig(**options)
    with pytest.raises(StorageConfigError, match="a key must be text, not 5"):
        mongo_config({"url": URL, 5: "x"})  # pyright: ignore[reportArgumentType]


def test_database_identity_is_equal_for_one_database_and_has_no_login(tmp_path: Path) -> None:
    def identity(**options: Any) -> str | None:
        return mongo_config({"database": "d", **options}).database_identity

    assert identity(url="mongodb://ann:secret@B,a:27018/x") == "mongodb:a:27018,b:27017/d/"
    assert identity(url="mongodb://a:27018,b/?replicaSet=rs0") == "mongodb:a:27018,b:27017/d/"
    assert identity(url="mongodb+srv://ann:secret@db.example.com", collection_prefix="p_") == (
        "mongodb:db.example.com:27017/d/p_"
    )
    assert identity(url="mongodb://%2Ftmp%2Fa.sock") == "mongodb:/tmp/a.sock/d/"
    assert identity(url="embedded", data_dir=tmp_path) == f"mongodb:{tmp_path}/d/"
    assert identity(url="embedded") is None
    assert identity(driver="mongomock") is None


def test_storage_opens_from_a_config_a_mapping_or_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEERFLOW_TEST_URL", URL + "/own")
    given: tuple[Any, ...] = (
        MongoConfig(url=URL + "/own"),
        {"url": URL, "database": "own"},
        {"backend": "mongodb", "url": "$DEERFLOW_TEST_URL"},
        URL + "/own",
        "$DEERFLOW_TEST_URL",
    )
    for config in given:
        assert MongoStorage.open(config).config == MongoConfig(url=URL + "/own").model_copy(
            update={"url": MongoStorage.open(config).config.url}
        )
    with pytest.raises(StorageConfigError, match="needs `backend: mongodb`"):
        MongoStorage.open({"backend": "sql", "url": URL})
    for missing in ({}, {"url": ""}, MongoConfig()):
        with pytest.raises(StorageConfigError, match="`url` is missing"):
            MongoStorage.open(missing)


def test_values_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEERFLOW_TEST_URL", "mongodb://db.example:27017/fromenv")
    monkeypatch.setenv("DEERFLOW_TEST_TIMEOUT", "1500")
    storage: Any = create_storage(
        {"backend": "mongodb", "url": "$DEERFLOW_TEST_URL", "timeout_ms": "$DEERFLOW_TEST_TIMEOUT"}
    )
    assert (storage.config.database, storage.config.timeout_ms) == ("fromenv", 1500)


def test_missing_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEERFLOW_TEST_NONE", raising=False)
    with pytest.raises(StorageConfigError, match=r"`url` is \$DEERFLOW_TEST_NONE"):
        create_storage({"backend": "mongodb", "url": "$DEERFLOW_TEST_NONE"})


def test_dollar_inside_a_value_is_not_a_variable() -> None:
    config = mongo_config({"url": "mongodb://user:$ecret@h/"})
    assert config.url == "mongodb://user:$ecret@h/"


def test_storage_section_is_read_from_a_yaml_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "models:\n  - name: m\nstorage:\n  backend: mongodb\n  url: mongodb://h/x\n  timeout_ms: 900\n",
        encoding="utf-8",
    )
    assert load_config(path) == {"backend": "mongodb", "url": "mongodb://h/x", "timeout_ms": 900}
    storage: Any = create_storage(load_config(str(path)))
    assert storage.config.database == "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: []\n", "no section `storage:`"),
        ("", "no section `storage:`"),
        ("storage: mongodb\n", "no section `storage:`"),
        ("storage: {url: 'mongodb://u:" + SECRET + "@h'\n", "not valid YAML at line"),
        ("storage:\n\t- x\n", "not valid YAML"),
    ],
)
def test_file_without_a_valid_storage_section_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StorageConfigError, match=message) as error:
        load_config(path)
    assert SECRET not in "".join(traceback.format_exception(error.value))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageConfigError, match=r"none\.yaml cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")


def test_missing_pyyaml_is_an_error_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingDependencyError, match=r"deerflow-mongo\[yaml\]"):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    "options",
    [
        {"url": SECRET_URL, "surplus": 1},
        {"url": SECRET_URL, "driver": "x"},
        {"url": SECRET_URL + "&w=0"},
        {"url": SECRET_URL + "&tls=perhaps"},
        {"url": SECRET_URL.replace("127.0.0.1:1", "h:port")},
        {"url": SECRET_URL.replace("mongodb:", "postgresql:")},
        {"url": f"mongodb://user:{SECRET}/@h/"},
        {"url": f"mongodb://user:a/{SECRET}@h/db"},
        {"url": f"mongodb://user:a?{SECRET}@h/db"},
        {"url": f"mongodb://user:a:{SECRET}@h/db"},
        {"url": f"mongodb://user:a@{SECRET}@h/db"},
        {"url": f"mongodb+srv://user:{SECRET}@h.example.net:5/db"},
        {"url": [SECRET_URL]},
    ],
)
def test_no_configuration_error_contains_the_password(options: dict[str, Any]) -> None:
    with pytest.raises(StorageConfigError) as error:
        create_storage({"backend": "mongodb", **options})
    assert SECRET not in "".join(traceback.format_exception(error.value))


async def test_no_repr_or_connection_error_contains_the_password() -> None:
    storage: Any = create_storage({"backend": "mongodb", "url": SECRET_URL, "timeout_ms": 200})
    texts = [repr(storage), str(storage), repr(storage.config), str(storage.config), f"{vars(storage)}"]
    with pytest.raises(Exception, match="cannot be reached") as error:
        await storage.runs.get("r", user_id=None)
    texts += ["".join(traceback.format_exception(error.value)), repr(storage.driver)]
    await storage.aclose()
    for text in texts:
        assert SECRET not in text
        assert "s3cr@t" not in text


def test_redacted_removes_only_the_login_and_secret_options() -> None:
    assert redacted("mongodb://u:p@h:1/db?x=1") == "mongodb://***@h:1/db?x=1"
    assert redacted("mongodb://u:a/b?c#d:e@f@h/db") == "mongodb://***@h/db"
    url = "mongodb://h/?tlsCertificateKeyFilePassword=s&AUTHMECHANISMPROPERTIES=AWS_SESSION_TOKEN:s&a=b"
    assert redacted(url) == "mongodb://h/?tlsCertificateKeyFilePassword=***&AUTHMECHANISMPROPERTIES=***&a=b"
    assert redacted("mongodb://h/db?x=1") == "mongodb://h/db?x=1"
    assert redacted("embedded") == "embedded"


@pytest.mark.parametrize("ends", ["\n", " ", "\r\n", "\t", "\ufeff", "\u00a0"])
def test_blanks_and_line_breaks_at_the_ends_of_a_text_are_removed(ends: str) -> None:
    """A secret that was made with `echo` ends in a line break."""
    given = {
        "url": URL + "/own",
        "collection_prefix": "p_",
        "driver": "motor",
        "timeout_ms": "70",
    }
    around = {key: f"{ends}{value}{ends}" for key, value in given.items()}
    assert mongo_config(around) == mongo_config(given)
    assert mongo_config({"url": URL, "database": f"{ends}own{ends}"}).database == "own"
    folders = {"url": f"embedded{ends}", "data_dir": f"{ends}/data{ends}", "mongod_path": f"/m{ends}"}
    config = mongo_config(folders)
    assert (config.url, config.data_dir, config.mongod_path) == ("embedded", Path("/data"), "/m")


@pytest.mark.parametrize("name", [name for name in MongoConfig.model_fields if name != "url"])
@pytest.mark.parametrize("empty", ["", " \n", None])
def test_empty_option_is_not_set(name: str, empty: object) -> None:
    config = mongo_config({"url": URL + "/own", name: empty})
    assert config == mongo_config({"url": URL + "/own"})
    means_something = empty is None and name in {retention.option for retention in RETENTIONS}
    assert (name in config.model_fields_set) is means_something


def test_empty_variable_is_not_set_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEERFLOW_TEST_EMPTY", "\n")
    storage: Any = create_storage(
        {
            "backend": "mongodb",
            "url": URL,
            "timeout_ms": "$DEERFLOW_TEST_EMPTY",
            "driver": "$DEERFLOW_TEST_EMPTY",
        }
    )
    assert (storage.config.timeout_ms, storage.config.driver) == (25_000, "pymongo")
    with pytest.raises(StorageConfigError, match="`url` is missing"):
        create_storage({"backend": "mongodb", "url": "$DEERFLOW_TEST_EMPTY"})
    with pytest.raises(StorageConfigError, match=r"is \$DEERFLOW_TEST_EMPTY, and that variable is empty"):
        create_storage("$DEERFLOW_TEST_EMPTY")


@pytest.mark.parametrize(
    "name", ["url", "database", "collection_prefix", "data_dir", "mongod_path", "driver"]
)
@pytest.mark.parametrize(
    "value", ["${DEERFLOW_X}", "$DEERFLOW_X/db", "${DEERFLOW_X:-default}", "a-${DEERFLOW_X}"]
)
def test_reference_that_is_not_read_is_an_error_that_names_the_option(name: str, value: str) -> None:
    options = {"backend": "mongodb", "url": "embedded", name: value}
    with pytest.raises(
        StorageConfigError, match=rf"`{name}`: .*only a value that is \$DEERFLOW_X as a whole"
    ):
        create_storage(options)


def test_config_object_reads_nothing_from_the_environment_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEERFLOW_X", URL)
    with pytest.raises(StorageConfigError, match=r"`url`: \$DEERFLOW_X is read .* by create_storage\(\)"):
        MongoConfig(url="$DEERFLOW_X")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("databse", "database"),
        ("uri", "url"),
        ("timeoutMs", "timeout_ms"),
        ("collection-prefix", "collection_prefix"),
        ("run_event_ttl_days", "run_events_ttl_days"),
    ],
)
def test_unknown_key_names_the_nearest_known_one(key: str, nearest: str) -> None:
    for value in ("x", None, ""):
        with pytest.raises(StorageConfigError, match=f"unknown key `{key}`.*did you mean `{nearest}`"):
            mongo_config({"url": URL, key: value})


@pytest.mark.parametrize(
    "options",
    [
        {"timeout_ms": True},
        *({retention.option: False} for retention in RETENTIONS),
        {"timeout_ms": 2**31},
        {"timeout_ms": 1.5},
        {"database": {"name": "x"}},
        {"database": ["x"]},
        {"collection_prefix": 5},
        {"url": {"host": "x"}},
    ],
)
def test_value_of_another_kind_is_an_error_that_names_the_option(options: dict[str, Any]) -> None:
    with pytest.raises(StorageConfigError, match=f"`{next(iter(options))}`"):
        mongo_config({"url": URL, **options})
