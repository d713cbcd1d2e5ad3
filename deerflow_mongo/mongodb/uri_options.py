"""What a MongoDB URI may set and what this package does with it, as one table, and the reading of a URI.

PyMongo defines what each option means; nothing here connects. No text made here contains a password.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from ..contract.errors import StorageConfigError

PASSED: Final = "passed on"
OURS: Final = "ours unless given"
REPLACED: Final = "replaced"
REFUSED: Final = "refused"


@dataclass(frozen=True, slots=True)
class UriOption:
    """One option of a URI: what is done with it, and the values that are refused, with the reason."""

    name: str
    handling: str = PASSED
    note: str = ""
    accepted: tuple[object, ...] | None = None
    """The only values that are accepted; None: any."""
    refused: tuple[object, ...] = ()
    reason: str = ""
    """Completes "NAME=VALUE is refused: ..."."""

    def refusal(self, value: object) -> str | None:
        """The sentence that refuses this value; `value` is as PyMongo has parsed it."""
        plain = value.lower() if isinstance(value, str) else value
        if plain in self.refused or (self.accepted is not None and plain not in self.accepted):
            shown = f"={value}" if isinstance(value, str | int) else ""
            return f"{self.name}{shown} is refused: {self.reason}"
        return None


_PRIMARY_ONLY: Final = (
    "reads go to the primary, because a secondary may not have what this process has just written: remove it"
)
_SOCKET_NOTE: Final = "has an effect only where `serverSelectionTimeoutMS` is set, and is `timeout_ms` there"
_CODEC_NOTE: Final = "no effect: our documents are read and written with codec options of our own"

URI_OPTIONS: Final[tuple[UriOption, ...]] = (
    UriOption("appName"),
    UriOption("authMechanism"),
    UriOption("authMechanismProperties", note="never shown in a text"),
    UriOption("authSource"),
    UriOption("compressors"),
    UriOption("connect", REPLACED, "no effect: a client connects at its first use"),
    UriOption("connectTimeoutMS", OURS, "2,000, also for `0`: a frozen server is noticed in seconds"),
    UriOption("datetime_conversion", REPLACED, _CODEC_NOTE),
    UriOption("directConnection"),
    UriOption("enableOverloadRetargeting"),
    UriOption("fsync"),
    UriOption("heartbeatFrequencyMS", OURS, "1,000: a new primary is found within a second"),
    UriOption("journal", note="with `false`, run events are listed as with `w=1`"),
    UriOption("loadBalanced"),
    UriOption("localThresholdMS"),
    UriOption("maxAdaptiveRetries"),
    UriOption("maxConnecting"),
    UriOption("maxIdleTimeMS"),
    UriOption("maxPoolSize"),
    UriOption(
        "maxStalenessSeconds", note="only `-1`, PyMongo's default", accepted=(-1,), reason=_PRIMARY_ONLY
    ),
    UriOption("minPoolSize"),
    UriOption(
        "readConcernLevel",
        REPLACED,
        "lists of run events are read with `majority` under a majority write concern, all else with `local`",
    ),
    UriOption(
        "readPreference", note="only `primary`, the default", accepted=("primary",), reason=_PRIMARY_ONLY
    ),
    UriOption("readPreferenceTags", REFUSED, "reads go to the primary", accepted=(), reason=_PRIMARY_ONLY),
    UriOption("replicaSet"),
    UriOption("retryReads", note="with `false`, a lost connection or a failover is an error of the read"),
    UriOption(
        "retryWrites",
        note="with `false`, a lost connection is an error of the write, and repeating `record_token_usage` "
        "after it may count twice",
    ),
    UriOption("serverMonitoringMode"),
    UriOption(
        "serverSelectionTimeoutMS",
        note="how long a call waits where no server is found; `timeout_ms` ends the call in any case",
    ),
    UriOption("socketTimeoutMS", OURS, _SOCKET_NOTE),
    UriOption("srvAllowedHostsSuffix", note="with `mongodb+srv://` only"),
    UriOption("srvMaxHosts", note="with `mongodb+srv://` only"),
    UriOption("srvServiceName", note="with `mongodb+srv://` only"),
    UriOption("ssl"),
    UriOption(
        "timeoutMS",
        note="the default of `timeout_ms`; with `0`, which is no limit in PyMongo, `timeout_ms` is 25,000",
    ),
    UriOption("tls"),
    UriOption("tlsAllowInvalidCertificates"),
    UriOption("tlsAllowInvalidHostnames"),
    UriOption("tlsCAFile"),
    UriOption("tlsCertificateKeyFile"),
    UriOption("tlsCertificateKeyFilePassword", note="never shown in a text"),
    UriOption("tlsCRLFile"),
    UriOption("tlsDisableOCSPEndpointCheck"),
    UriOption("tlsInsecure"),
    UriOption("tz_aware", REPLACED, _CODEC_NOTE),
    UriOption("unicode_decode_error_handler", REPLACED, _CODEC_NOTE),
    UriOption("uuidRepresentation", REPLACED, _CODEC_NOTE),
    UriOption(
        "w",
        OURS,
        "`majority`; any other concern but `0` is accepted, and run events are then listed with read "
        "concern `local`",
        refused=(0,),
        reason="it acknowledges no write, so that no error would be reported: remove it",
    ),
    UriOption("waitQueueMultiple", note="no effect in PyMongo 4"),
    UriOption("waitQueueTimeoutMS", OURS, _SOCKET_NOTE),
    UriOption("wTimeoutMS", note="has an effect only where `serverSelectionTimeoutMS` is set"),
    UriOption("zlibCompressionLevel"),
)
"""Every option that PyMongo reads from a URI, except `driver` and `server_api`, which no text can express."""

BY_NAME: Final[Mapping[str, UriOption]] = {option.name.lower(): option for option in URI_OPTIONS}

CLIENT_DEFAULTS: Final[Mapping[str, int]] = {"connectTimeoutMS": 2_000, "heartbeatFrequencyMS": 1_000}
"""Set in our own clients where the URI does not set them."""

# Up to the last @, even in the options: a login that is not escaped may contain any character.
_LOGIN = re.compile(r"(?<=://).*@", re.DOTALL)
_SECRET_OPTIONS = re.compile(r"(tlsCertificateKeyFilePassword=|authMechanismProperties=)[^&]*", re.IGNORECASE)
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_SRV = "mongodb+srv://"
_SRV_OPTION = re.compile(r"(?<=[?&;])srv[a-z]+=[^&;]*[&;]?", re.IGNORECASE)
_INVALID = "url is not a valid MongoDB URI: "


def redacted(url: str) -> str:
    """The URL without its login and without options that are secret."""
    return _SECRET_OPTIONS.sub(r"\1***", _LOGIN.sub("***@", url))


@dataclass(frozen=True, slots=True)
class MongoUri:
    """What a URI sets: the database, and the options by their names in lower case, as PyMongo reads them."""

    database: str | None
    options: Mapping[str, Any]
    hosts: tuple[str, ...] = ()
    """Each with its port, in alphabetical order; of `mongodb+srv://` the name that is looked up."""

    def ms(self, name: str) -> int | None:
        """A timeout in milliseconds, which PyMongo has parsed to seconds; None: not given, or 0, no limit."""
        value = self.options.get(name.lower())
        return max(1, round(value * 1000)) if value else None


def read_uri(url: str) -> MongoUri:
    """Read a URI without any connection, also where its scheme asks for a DNS lookup.

    Raises `StorageConfigError` for what PyMongo would refuse, take for something else or ignore, and for what
    this package refuses.
    """
    _check_text(url)
    parsed = _parsed(url)
    if parsed["collection"]:
        raise StorageConfigError(
            "url: a database's name cannot contain a dot, and what follows it is no part of the name: rename "
            "the database, or set `database`"
        )
    options = {str(name).lower(): value for name, value in parsed["options"].items()}
    for name, value in options.items():
        refusal = BY_NAME[name].refusal(value) if name in BY_NAME else None
        if refusal is not None:
            raise StorageConfigError(f"url: {refusal}")
    _check_client(_plain(url), parsed)
    hosts = sorted(f"{host}:{port or ''}".rstrip(":").lower() for host, port in parsed["nodelist"])
    return MongoUri(parsed["database"], options, tuple(hosts))


def _check_text(url: str) -> None:
    """What PyMongo would not report, or not by name."""
    if _CONTROL_CHARACTERS.search(url):
        raise StorageConfigError("url contains a line break or another control character: remove it")
    address, _, options = redacted(url).partition("://")[2].partition("?")
    place = address.rpartition("@")[2]
    if any(character.isspace() for character in place):
        raise StorageConfigError("url contains a blank in its host or database: remove it")
    if "$" in place:
        raise StorageConfigError(
            "url contains `$` in its host or database: only a value that is `$NAME` as a whole is read from "
            "the environment"
        )
    for name, times in Counter(name.lower() for name in _option_names(options)).items():
        if name not in BY_NAME:
            known = [option.name for option in URI_OPTIONS]
            raise StorageConfigError(f"url: unknown option `{name}`{nearest(name, known)}")
        if times > 1 and name != "readpreferencetags":
            raise StorageConfigError(f"url sets `{BY_NAME[name].name}` {times} times: set it once")


def _option_names(options: str) -> Iterator[str]:
    for option in re.split("[&;]", options):
        name, equals, _ = option.partition("=")
        if equals:
            yield name


def nearest(name: str, known: Iterable[str]) -> str:
    """Such as ": did you mean `database`?"; "" where nothing is near."""
    plain = {_letters(candidate): candidate for candidate in known}
    found = difflib.get_close_matches(_letters(name), plain, n=1, cutoff=0.65)
    return f": did you mean `{plain[found[0]]}`?" if found else ""


def _letters(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _plain(url: str) -> str:
    """The URI as one that PyMongo parses without a DNS lookup."""
    if not url.startswith(_SRV):
        return url
    return _SRV_OPTION.sub("", url.replace(_SRV, "mongodb://", 1)).rstrip("?&;")


def _parsed(url: str) -> Mapping[str, Any]:
    # Imported here: importing this package imports no driver.
    from pymongo.errors import PyMongoError
    from pymongo.uri_parser import parse_uri

    plain, refusals = _plain(url), (PyMongoError, ValueError, TypeError, KeyError, OSError)
    try:
        parsed = cast("Mapping[str, Any]", parse_uri(plain, validate=True, warn=False))
    except OSError as error:  # of a file that an option names
        raise StorageConfigError(f"url names a file that cannot be read: {error.strerror}") from error
    except refusals:
        # The driver's text may quote what it parsed as a part of the URI: parse one without secrets instead.
        try:
            parse_uri(redacted(plain), validate=True, warn=False)
        except refusals as error:
            raise StorageConfigError(_INVALID + str(error)) from error
        raise StorageConfigError(_INVALID + "escape the login's special characters (RFC 3986)") from None
    if plain != url:
        _check_srv(url, parsed)
    return parsed


def _check_srv(url: str, parsed: Mapping[str, Any]) -> None:
    """What PyMongo checks only when it looks the name up."""
    hosts = url.partition("://")[2].partition("?")[0].partition("/")[0].rpartition("@")[2]
    if "," in hosts or ":" in hosts:
        raise StorageConfigError("url: mongodb+srv:// takes one host name and no port")
    try:
        ipaddress.ip_address(hosts)
    except ValueError:
        pass
    else:
        raise StorageConfigError("url: mongodb+srv:// takes a host name, not an address: use mongodb://")
    options = {str(name).lower(): value for name, value in parsed["options"].items()}
    if options.get("directconnection"):
        raise StorageConfigError("url: directConnection=true does not go with mongodb+srv://")


def _check_client(plain: str, parsed: Mapping[str, Any]) -> None:
    """Raise for options that fit one by one and not together, which only a client checks."""
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError

    try:
        MongoClient[Any](plain, connect=False).close()
    except (PyMongoError, ValueError, TypeError, OSError) as error:
        text = str(error)
        if any(secret and secret in text for secret in (parsed["username"], parsed["password"])):
            text = "its login is refused"
        raise StorageConfigError(_INVALID + redacted(text)) from None
