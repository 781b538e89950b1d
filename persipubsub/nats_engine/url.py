"""The location of a queue on a cluster: ``nats://user:password@host:4222,host2:4222/queue?replicas=3``.

Secrets never appear in what is shown, logged or pickled: there they are replaced with :data:`MASK`.
"""

import dataclasses
import os
import re
import ssl
import urllib.parse
from typing import Dict, List, Mapping, Optional, Tuple, Union

from persipubsub import errors

SCHEMES = ("nats", "tls")
PORT_DEFAULT = 4222
REPLICAS_MAX = 5
#: The name of a queue is a part of the names of its streams.
NAME = re.compile(r"[A-Za-z0-9_-]{1,200}")
#: What is shown in place of a password or a token.
MASK = "***"
#: The environment variable that a process reads if its location came without the secret, such as through pickle.
SECRET_VARIABLE = "PERSIPUBSUB_NATS_SECRET"
PARAMETERS = ("replicas", "timeout_s", "credentials", "ca", "certificate", "key", "monitoring")
#: How long an operation waits for servers: an hour at most.
TIMEOUT_S_MAX = 3600

#: The certificates of a TLS connection: the path of the authorities' certificates, or a mapping with the keys "ca",
#: "certificate" and "key", each of which is the path of a file, or an SSLContext.
Tls = Union[str, Mapping[str, str], ssl.SSLContext]

# The secrets of this process, by the shown locations that hide them: a copy by pickle in the same process finds them.
_SECRETS: Dict[str, str] = {}


@dataclasses.dataclass(frozen=True)
class Target:  # pylint: disable=too-many-instance-attributes  # one per part of a location
    """A queue on a cluster, and how to connect to it."""

    #: host:port of each server.
    hosts: Tuple[str, ...]
    queue: str
    #: None: as many as there are servers, up to 3.
    replicas: Optional[int]
    user: Optional[str]
    #: A password, or a token if there is no user.
    secret: Optional[str] = dataclasses.field(repr=False)
    #: The path of a .creds file.
    credentials: Optional[str]
    tls: Optional[Tls]
    secure: bool
    #: For how many seconds an operation goes on trying; None for the default.
    timeout_s: Optional[int]
    #: The port at which the servers answer questions about their settings.
    monitoring: Optional[int]
    #: The URL without secrets.
    shown: str

    def servers(self) -> List[str]:
        """Return the URLs of the servers, without secrets."""
        return [f"{'tls' if self.secure else 'nats'}://{host}" for host in self.hosts]

    def known_secret(self) -> Optional[str]:
        """Return the password or the token.

        :raise PathError: it is not known, since the location came from another process without it
        """
        if self.secret != MASK:
            return self.secret
        secret = _SECRETS.get(self.shown) or os.environ.get(SECRET_VARIABLE)
        if secret is None:
            raise errors.PathError(
                f"The location {self.shown} came without its password, since pickles never contain one. Set the "
                f"environment variable {SECRET_VARIABLE}, use a file of credentials, or make the Environment here.")
        return secret

    def readable_credentials(self) -> str:
        """Return the path of the file of credentials.

        :raise PathError: it cannot be read
        """
        assert self.credentials is not None
        try:
            with open(self.credentials, "rb"):
                return self.credentials
        except OSError as error:
            raise errors.PathError(
                f"The credentials for {self.shown} cannot be read ({error}). Correct the path.") from error

    def ssl_context(self) -> Optional[ssl.SSLContext]:
        """Return the settings of TLS; None for a connection without it.

        :raise PathError: a certificate cannot be read
        """
        if isinstance(self.tls, ssl.SSLContext):
            return self.tls
        if not self.secure:
            return None
        files: Mapping[str, str] = {"ca": self.tls} if isinstance(self.tls, str) else self.tls or {}
        try:
            context = ssl.create_default_context(cafile=files.get("ca"))
            if "certificate" in files:
                context.load_cert_chain(files["certificate"], files.get("key"))
        except OSError as error:  # an SSLError is one
            raise errors.PathError(
                f"A certificate for {self.shown} cannot be read ({error}): {dict(files)}. Correct the path.") from error
        return context


# pylint: disable-next=too-many-locals  # one for each part of a URL
def parsed(url: str, credentials: Optional[str] = None, tls: Optional[Tls] = None) -> Target:
    """Return what a URL says, and the arguments beside it.

    :raise ArgumentError: it is not the location of a queue on a cluster
    :raise ArgumentTypeError: an argument of the wrong type
    """
    scheme, _, rest = url.partition("://")
    authority, _, path = rest.partition("/")
    name, _, query = path.partition("?")
    userinfo, _, hosts = authority.rpartition("@")
    shown_wrong = f"{scheme}://{MASK + '@' if userinfo else ''}{hosts}/{path}"
    if scheme not in SCHEMES:
        raise errors.ArgumentError(f"The scheme of {shown_wrong} must be nats or tls.")
    if not NAME.fullmatch(name):
        raise errors.ArgumentError(
            f"A location on a cluster ends with the name of its queue, as nats://host:4222/orders does: 1 to 200 "
            f"letters, digits, - and _; got {shown_wrong}.")
    parameters = _parameters(query, shown_wrong)
    user, secret = _login(userinfo)
    addresses = tuple(_address(host, shown_wrong) for host in hosts.split(","))
    files: Dict[str, str] = {key: parameters[key] for key in ("ca", "certificate", "key") if key in parameters}
    login = "" if secret is None else f"{user}:{MASK}@" if user is not None else f"{MASK}@"
    shown = f"{scheme}://{login}{','.join(addresses)}/{name}{'?' if query else ''}{query}"
    if secret not in (None, MASK):
        assert secret is not None
        _SECRETS[shown] = secret
    tls = _tls(tls) or files or None
    return Target(hosts=addresses,
                  queue=name,
                  replicas=_number(parameters, "replicas", REPLICAS_MAX, shown_wrong),
                  user=user,
                  secret=secret,
                  credentials=_credentials(credentials) or parameters.get("credentials"),
                  tls=tls,
                  secure=scheme == "tls" or tls is not None,
                  timeout_s=_number(parameters, "timeout_s", TIMEOUT_S_MAX, shown_wrong),
                  monitoring=_number(parameters, "monitoring", 65535, shown_wrong),
                  shown=shown)


def _parameters(query: str, shown: str) -> Dict[str, str]:
    try:
        parameters = dict(urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError as error:
        raise errors.ArgumentError(f"What follows the ? in {shown} must be like replicas=3&ca=path.") from error
    unknown = [name for name in parameters if name not in PARAMETERS]
    if unknown:
        raise errors.ArgumentError(f"The location {shown} has an unknown parameter, {unknown[0]!r}; there are "
                                   f"{', '.join(PARAMETERS)}.")
    return parameters


def _login(userinfo: str) -> Tuple[Optional[str], Optional[str]]:
    """Return user and password; or None and a token."""
    if not userinfo:
        return None, None
    first, separator, second = userinfo.partition(":")
    if separator:
        return urllib.parse.unquote(first), urllib.parse.unquote(second)
    return None, urllib.parse.unquote(first)


def _address(host: str, shown: str) -> str:
    try:
        parts = urllib.parse.urlsplit(f"//{host}")
        port = parts.port
    except ValueError as error:
        raise errors.ArgumentError(f"{host!r} in {shown} must be host:port ({error}).") from error
    if not parts.hostname or parts.netloc != host:
        raise errors.ArgumentError(f"{host!r} in {shown} must be the name of a host, with its port unless it is "
                                   f"{PORT_DEFAULT}.")
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{name}:{PORT_DEFAULT if port is None else port}"


def _number(parameters: Mapping[str, str], name: str, most: int, shown: str) -> Optional[int]:
    text = parameters.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= most):
        raise errors.ArgumentError(f"{name} in {shown} must be from 1 to {most}, got {text!r}.")
    return int(text)


def _credentials(value: object) -> Optional[str]:
    if value is None:
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise errors.ArgumentTypeError(f"credentials must be the path of a .creds file, got {type(value).__name__}.")
    return str(os.fspath(value))


def _tls(value: object) -> Optional[Tls]:
    if value is None or isinstance(value, ssl.SSLContext):
        return value
    if isinstance(value, (str, os.PathLike)):
        return str(os.fspath(value))
    if isinstance(value, Mapping) and set(value) <= {"ca", "certificate", "key"}:
        return {name: str(os.fspath(path)) for name, path in value.items()}
    raise errors.ArgumentTypeError("tls must be the path of the authorities' certificates, a mapping with the keys ca, "
                                   f"certificate and key, or an SSLContext; got {type(value).__name__}.")
