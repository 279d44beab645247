"""`serve`: a build behind NVIDIA Triton, supervised from a thread of this process."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack

from iblip.building import Build, messages_in_keywords
from iblip.export.artifact.manifest import MEANS_NOTHING
from iblip.export.errors import OptionError
from iblip.export.messages import did_you_mean
from iblip.export.system.arguments import checked
from iblip.export.system.paths import PathLike, path_from
from iblip.libraries import installed
from iblip.progress import ProgressOption, progress_from

if TYPE_CHECKING:
    from iblip.serving.server.health import State
    from iblip.serving.server.options import ServerOptions
    from iblip.serving.server.server import TritonServer
    from iblip.serving.server.supervisor import Supervisor

logger = logging.getLogger(__name__)


class ServeKeywords(TypedDict, total=False):
    """Options of a server that few callers need, as keywords of `serve`.

    Attributes:
        cache_mib: of the cache of encoded images, in MiB; 0 is none.
        vision_cache, vision_cache_mib: a directory for encoded images, as in `load`.
        max_http_body_mib: most MiB of a request over HTTP.
        triton: a `tritonserver` to use; `None` takes the container's, or nvidia-pytriton's.
        triton_flags: further flags for Triton, such as `["--log-verbose=1"]`.
        vllm_python: vLLM's environment, for a build that runs on vLLM.
        stop_timeout_s: seconds that running requests may take when the server is stopped.
        echo_log: whether to copy the server's log to stderr.
        default_timeout_s: deadline of requests that bring none, in seconds.
        caller_header: header by which callers are told apart.
        max_caller_requests, max_caller_tokens: limits of each caller.
        tls_certificate, tls_key: PEM files of the server: gRPC then speaks TLS.
        tls_client_authorities: PEM file; callers then need a certificate that one of these signed.
        opened: what is closed to callers and shall be open; see `docs/security.md`.
        allow_known_vulnerabilities: whether other machines may reach a Triton that has some.
    """

    cache_mib: int
    vision_cache: PathLike | None
    vision_cache_mib: int | None
    max_http_body_mib: int
    triton: PathLike | None
    triton_flags: Iterable[str]
    vllm_python: PathLike | None
    stop_timeout_s: float
    echo_log: bool
    default_timeout_s: float | None
    caller_header: str
    max_caller_requests: int | None
    max_caller_tokens: int | None
    tls_certificate: PathLike | None
    tls_key: PathLike | None
    tls_client_authorities: PathLike | None
    opened: Iterable[str]
    allow_known_vulnerabilities: bool


@dataclass
class _Serving:
    """What the supervisor's thread shares with the `Server`; it does not keep the latter alive."""

    supervisor: Supervisor
    settled: threading.Event = field(default_factory=threading.Event)
    server: TritonServer | None = None
    error: BaseException | None = None

    def run(self) -> None:
        try:
            self.supervisor.run(self._be_ready)
        except BaseException as error:
            self.error = error
            if self.settled.is_set():  # nobody waits for it; `Server.state` says it
                logger.error("%s", error)
        finally:
            self.settled.set()

    def _be_ready(self, server: TritonServer) -> None:
        self.server = server
        self.settled.set()


def _stop(serving: _Serving, thread: threading.Thread) -> None:
    serving.supervisor.stop()
    if thread is not threading.current_thread():  # not where a callback stops its own server
        thread.join()


class Server:
    """A build that is served until the block ends, or until `stop`.

        with iblip.serve(build) as server, iblip.Client(server.url) as client:
            print(client.ask("photo.jpg", "What is unusual about this image?").text)

    A server that dies or hangs is started again on the same ports, as `iblip serve` does. It ends
    with this process, however that ends. `stop` may be called from any thread.

    Attributes:
        build: what is served.
    """

    def __init__(self, build: Build, options: ServerOptions, *, restarts: int, tell: Any) -> None:
        from iblip.serving.repository.assembling import REPOSITORY
        from iblip.serving.server.health import Health
        from iblip.serving.server.supervisor import RestartPolicy, Supervisor

        self.build = build
        self._health = Health()
        self._serving = _Serving(
            Supervisor(
                build.path / REPOSITORY,
                options,
                policy=RestartPolicy(limit=restarts),
                health=self._health,
                progress=tell,
            )
        )
        # A daemon, so that a program which forgets to stop its server can end; the finalizer, which
        # runs before daemons are abandoned, stops it then.
        thread = threading.Thread(target=self._serving.run, name="iblip-serve", daemon=True)
        thread.start()
        self._finalizer = weakref.finalize(self, _stop, self._serving, thread)
        try:
            self._serving.settled.wait()
        except BaseException:  # Ctrl-C while the models load
            self.stop()
            raise
        if self._serving.error is not None:
            self.stop()
            raise self._serving.error

    @property
    def _server(self) -> TritonServer:
        assert self._serving.server is not None
        return self._serving.server

    @property
    def url(self) -> str:
        """`host:port` of its gRPC service, which `Client` takes."""
        return self._server.grpc_url

    @property
    def http_url(self) -> str:
        """`http://host:port`."""
        return self._server.http_url

    @property
    def metrics_url(self) -> str:
        """Address of the metrics, in Prometheus' format."""
        return self._server.metrics_url

    @property
    def state(self) -> State | Literal["stopped"]:
        """`ready`; `restarting`; `failed`, once it was restarted too often; or `stopped`."""
        if self._health.state != "failed" and not self._finalizer.alive:
            return "stopped"
        return self._health.state

    @property
    def restarts(self) -> int:
        """How often the server has been started again."""
        return self._health.restarts

    def stop(self) -> None:
        """Stops the server and everything that it started; does nothing the second time.

        Running requests are given `stop_timeout_s` to end.
        """
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Server of {self.build} at {self.url}: {self.state}>"


@checked
def serve(
    build: PathLike,
    *,
    host: str = "127.0.0.1",
    grpc_port: int = 0,
    http_port: int = 0,
    metrics_port: int = 0,
    token: str | None = None,
    log: PathLike | None = None,
    max_restarts: int = 5,
    ready_timeout_s: float = 600.0,
    progress: ProgressOption = None,
    **options: Unpack[ServeKeywords],
) -> Server:
    """Starts NVIDIA Triton on a build; returns once every model is ready.

    Blocks while the models load: in an event loop, `await asyncio.to_thread(iblip.serve, build)`.
    Needs no signal handlers, and works in any thread.

    Args:
        build: a `Build`, or the path of its directory.
        host: address to listen on; the default is reachable from this machine only.
        grpc_port, http_port, metrics_port: 0 picks any free port.
        token: what callers must send; `None` lets anybody ask.
        log: file that the server's log is appended to.
        max_restarts: restarts in a row of a server that does not stay ready for a minute; 0 is
            none.
        ready_timeout_s: seconds that the models may take to load.
        progress: as in `iblip.build`: a note for each model that is loaded, and for each restart.
        options: see `ServeKeywords`.

    Raises:
        OptionError: an option is unknown, out of range, or does not fit the build.
        BuildDirectoryError: it is not a build, or a file of it is missing.
        ServingError: there is no Triton, a port is taken, or a model does not load.
    """
    opened = build if isinstance(build, Build) else Build(build)
    for name in options.keys() - ServeKeywords.__annotations__.keys():
        hint = did_you_mean(name, ServeKeywords.__annotations__)
        raise OptionError(f"serve has no option {name!r}.{hint}")
    shown = progress_from(progress)
    tell = shown.note if progress else logger.info
    given: dict[str, Any] = {
        **options,
        "host": host,
        "grpc_port": grpc_port,
        "http_port": http_port,
        "metrics_port": metrics_port,
        "token": token,
        "log": log,
        "ready_timeout_s": ready_timeout_s,
    }
    with messages_in_keywords(), installed("iblip.serve"):
        settled = _options(opened, given)
        if opened.manifest.synthetic:
            logger.warning("%s", MEANS_NOTHING)
        return Server(opened, settled, restarts=max_restarts, tell=tell)


def _options(build: Build, given: dict[str, Any]) -> ServerOptions:
    """How the server is started; raises as `serve`."""
    from iblip.engines.vision_cache.directory import cache_directory
    from iblip.serving.launching import check_servable, environment_of_models
    from iblip.serving.repository.native import flags_for
    from iblip.serving.server.access import check_triton_flags
    from iblip.serving.server.options import ServerOptions
    from iblip.serving.steps.policy import Policy

    triton, vllm_python = (_path(given.pop(name, None), name) for name in ("triton", "vllm_python"))
    flags = given.pop("triton_flags", ())
    flags = (flags,) if isinstance(flags, str) else tuple(flags)
    opened = given.pop("opened", ())
    policy = {name: given.pop(name) for name in Policy.__dataclass_fields__ if name in given}
    check_servable(build.path, build.manifest, triton)
    check_triton_flags(flags)
    return ServerOptions(
        triton=triton,
        policy=Policy(**policy),
        vision_cache=cache_directory(
            given.pop("vision_cache", None), given.pop("vision_cache_mib", None)
        ),
        tls=_tls(*(given.pop(f"tls_{name}", None) for name in TLS_FILES)),
        opened=(opened,) if isinstance(opened, str) else tuple(opened),
        environment=environment_of_models(build.manifest, vllm_python),
        extra=flags_for(build.manifest) + flags,
        **given,
    )


TLS_FILES = ("certificate", "key", "client_authorities")


def _tls(certificate: Any, key: Any, client_authorities: Any) -> Any:
    from iblip.serving.server.tls import ServerTLS

    if certificate is None and key is None and client_authorities is None:
        return None
    if certificate is None or key is None:
        raise OptionError(
            "TLS needs both tls_certificate and tls_key; tls_client_authorities is in addition"
        )
    return ServerTLS(certificate=certificate, key=key, client_authorities=client_authorities)


def _path(value: PathLike | None, name: str) -> Path | None:
    return None if value is None else path_from(value, name)
