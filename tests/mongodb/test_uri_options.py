"""What a URI may set, option by option: the table, what it does, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pymongo import MongoClient, common

from deerflow_mongo import MongoConfig, StorageConfigError, create_storage
from deerflow_mongo.mongodb.config import mongo_config
from deerflow_mongo.mongodb.drivers.driver import DriverOptions
from deerflow_mongo.mongodb.drivers.pymongo_async import client_settings
from deerflow_mongo.mongodb.uri_options import CLIENT_DEFAULTS, OURS, PASSED, URI_OPTIONS, read_uri

from . import tables
from .documents.pinned import README

URL = "mongodb://127.0.0.1:1/"
NOT_IN_A_TEXT = {"driver", "server_api"}

# A value of each option that PyMongo and this package accept; some need a second option or a file.
SAMPLES: dict[str, str] = {
    "appName": "app",
    "authMechanism": "MONGODB-X509",
    "authMechanismProperties": "SERVICE_NAME:mongodb",
    "authSource": "admin",
    "compressors": "zlib",
    "connect": "false",
    "connectTimeoutMS": "700",
    "datetime_conversion": "DATETIME",
    "heartbeatFrequencyMS": "900",
    "localThresholdMS": "5",
    "maxAdaptiveRetries": "1",
    "maxConnecting": "3",
    "maxIdleTimeMS": "1000",
    "maxPoolSize": "7",
    "maxStalenessSeconds": "-1",
    "minPoolSize": "1",
    "readConcernLevel": "majority",
    "readPreference": "primary",
    "replicaSet": "rs",
    "serverMonitoringMode": "poll",
    "serverSelectionTimeoutMS": "200",
    "socketTimeoutMS": "300",
    "srvAllowedHostsSuffix": "example.net",
    "srvMaxHosts": "2",
    "srvServiceName": "mongo",
    "timeoutMS": "400",
    "unicode_decode_error_handler": "ignore",
    "uuidRepresentation": "standard",
    "w": "1",
    "waitQueueMultiple": "2",
    "waitQueueTimeoutMS": "250",
    "wTimeoutMS": "800",
    "zlibCompressionLevel": "3",
}
FILES = {"tlsCAFile", "tlsCertificateKeyFile", "tlsCRLFile"}
REFUSED = {"readPreferenceTags": "region:east"}
VALUES = {
    option.name: SAMPLES.get(option.name, "true")
    for option in URI_OPTIONS
    if option.name not in {*FILES, *REFUSED, "tlsCertificateKeyFilePassword"}
}


def _settings(options: str, timeout_ms: int = 25_000) -> dict[str, Any]:
    return client_settings(DriverOptions(URL + options, "d", timeout_ms))


def test_table_has_every_option_that_pymongo_reads_from_a_uri() -> None:
    known = {*common.URI_OPTIONS_VALIDATOR_MAP, *common.NONSPEC_OPTIONS_VALIDATOR_MAP, "ssl"} - NOT_IN_A_TEXT
    assert known <= {option.name.lower() for option in URI_OPTIONS}
    names = [option.name for option in URI_OPTIONS]
    assert len(names) == len({name.lower() for name in names})


def test_readme_prints_the_tables() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == tables.readme_with_tables(), "run `python -m tests.mongodb.tables`"


@pytest.mark.parametrize("name", VALUES)
def test_option_is_accepted_and_set_as_the_table_says(name: str) -> None:
    scheme = "mongodb+srv://h.example.net/" if name.startswith("srv") else URL
    url = f"{scheme}?{name}={VALUES[name]}"
    config = MongoConfig(url=url)
    assert config.timeout_ms == (400 if name == "timeoutMS" else 25_000)
    [option] = [option for option in URI_OPTIONS if option.name == name]
    if option.handling == PASSED and name != "serverSelectionTimeoutMS":
        assert client_settings(DriverOptions(url, "d", 25_000)) == _settings("")


@pytest.mark.parametrize("name", sorted(FILES))
def test_file_that_cannot_be_read_is_an_error(name: str) -> None:
    with pytest.raises(StorageConfigError, match="url names a file that cannot be read"):
        MongoConfig(url=f"{URL}?tls=true&{name}=/no/such/file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("w=0", "w=0 is refused: it acknowledges no write"),
        ("readPreference=secondary", "readPreference=secondary is refused: reads go to the primary"),
        ("readPreference=primaryPreferred", "readPreference=primaryPreferred is refused"),
        ("readPreferenceTags=region:east", "readPreferenceTags is refused: reads go to the primary"),
        ("maxStalenessSeconds=120", "maxStalenessSeconds=120 is refused"),
        ("driver=x", "unknown option `driver`"),
        ("conectTimeoutMS=5", "unknown option `conecttimeoutms`: did you mean `connectTimeoutMS`"),
        ("readPreferance=primary", "unknown option `readpreferance`: did you mean `readPreference`"),
        ("proxyHost=h", "unknown option `proxyhost`"),
        ("w=1&w=2", "sets `w` 2 times"),
        ("connectTimeoutMS=soon", "not a valid MongoDB URI: .*must be an integer or float"),
        ("heartbeatFrequencyMS=100", "heartbeatFrequencyMS cannot be less than 500"),
        ("minPoolSize=20&maxPoolSize=3", "minPoolSize must be smaller or equal to maxPoolSize"),
        ("datetime_conversion=x", "not a valid MongoDB URI"),
        ("srvMaxHosts=2", "only allowed with 'mongodb\\+srv://'"),
        ("tls=true&tlsInsecure=true&tlsAllowInvalidHostnames=true", "cannot be specified simultaneously"),
    ],
)
def test_option_that_would_be_ignored_or_break_a_promise_is_refused(options: str, message: str) -> None:
    with pytest.raises(StorageConfigError, match=message):
        create_storage(f"{URL}?{options}")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mongodb+srv://127.0.0.1/d", "takes a host name, not an address"),
        ("mongodb+srv://h.example.net/?directConnection=true", "does not go with mongodb\\+srv"),
        ("mongodb://h/d\nx", "line break"),
        ("mongodb://h/d\x00x", "control character"),
        ("mongodb://h d/x", "a blank in its host or database"),
        ("mongodb://$HOST/d", "`\\$` in its host or database"),
        ("mongodb://h/deerflow.prod", "cannot contain a dot"),
        ("mongodb://h/deerflow%2Eprod", "cannot contain a dot"),
        ("mongodb://h/d%0A", "`url`: a database's name has"),
    ],
)
def test_url_that_would_be_taken_for_another_is_refused(url: str, message: str) -> None:
    with pytest.raises(StorageConfigError, match=message):
        create_storage(url)


def test_our_own_clients_notice_a_frozen_server_in_seconds() -> None:
    """Unless the URI sets these times itself; `0`, no limit, does not count."""
    assert dict(CLIENT_DEFAULTS) == {"connectTimeoutMS": 2_000, "heartbeatFrequencyMS": 1_000}
    assert _settings("") == {"timeoutMS": 25_000, **CLIENT_DEFAULTS}
    assert _settings("?connectTimeoutMS=0") == _settings("")
    assert _settings("?connectTimeoutMS=5000&heartbeatFrequencyMS=9000") == {
        "timeoutMS": 25_000,
        "connectTimeoutMS": 5_000,
        "heartbeatFrequencyMS": 9_000,
    }


def test_server_selection_timeout_keeps_its_effect_and_every_call_its_limit() -> None:
    """PyMongo ignores it beside timeoutMS, and has no limit for an answer without."""
    limits = {"timeoutMS": None, "socketTimeoutMS": 900, "waitQueueTimeoutMS": 900}
    for options in ("?serverSelectionTimeoutMS=200", "?serverSelectionTimeoutMS=200&timeoutMS=5000"):
        assert _settings(options, 900) == {**limits, **CLIENT_DEFAULTS}
    assert _settings("?serverSelectionTimeoutMS=200&socketTimeoutMS=0", 900) == {**limits, **CLIENT_DEFAULTS}
    given = _settings("?serverSelectionTimeoutMS=200&socketTimeoutMS=50&waitQueueTimeoutMS=60", 900)
    assert given == {"timeoutMS": None, **CLIENT_DEFAULTS}
    settings: dict[str, Any] = {"connect": False, **limits}
    client = MongoClient[Any](f"{URL}?serverSelectionTimeoutMS=200&timeoutMS=5000", **settings)
    assert (client.options.timeout, client.options.server_selection_timeout) == (None, 0.2)


def test_options_that_are_ours_unless_given_say_so() -> None:
    ours = {option.name for option in URI_OPTIONS if option.handling == OURS}
    assert ours == {*CLIENT_DEFAULTS, "socketTimeoutMS", "waitQueueTimeoutMS", "w"}


def test_timeout_of_the_uri_is_the_default_of_the_option() -> None:
    assert mongo_config({"url": f"{URL}?timeoutMS=0.2"}).timeout_ms == 1
    assert mongo_config({"url": f"{URL}?timeoutMS=700"}).timeout_ms == 700
    assert mongo_config({"url": f"{URL}?timeoutMS=700", "timeout_ms": 5}).timeout_ms == 5
    assert read_uri("mongodb+srv://h.example.net/d?srvMaxHosts=2&timeoutMS=700").ms("timeoutMS") == 700
