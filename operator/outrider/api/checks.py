"""What a Rollout asks beyond Kubernetes' own word: of each moved agent, and between batches of the world around."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from outrider.api.base import ApiModel, HttpPath, Time, one_of, worded
from outrider.api.componentversion import ConfigMapKey, JobTemplate, SecretReference, Url

COMPARISON_PATTERN = r"^(<|<=|>|>=|==|!=) ?-?[0-9]{1,15}([.][0-9]{1,15})?(e-?[0-9]{1,2})?$"

AnalysisVerdict = Literal["Pass", "Fail", "Unknown"]
"""Unknown: nobody can tell. It neither lets a run go on nor ends it."""

BodyText = Annotated[str, Field(min_length=1, max_length=256)]


class HttpCheck(ApiModel):
    """A GET to the agent's pod, by its IP, from the operator. Any 2xx passes; redirects are not followed."""

    path: HttpPath = "/"
    """What is asked for, with a query if it needs one."""
    port: Annotated[int, Field(ge=1, le=65535)]
    """The port that the agent listens on, in its pod."""
    scheme: Literal["HTTP", "HTTPS"] = "HTTP"
    """HTTPS: the certificate is not verified, as with the kubelet's probes."""
    body_contains: BodyText | None = None
    """What the first 64 KiB of the body must contain."""
    body_contains_version: bool = False
    """The body must contain the run's version, as a whole word: so an agent that is still the old one does not pass."""


class PrometheusQuery(ApiModel):
    """An instant query whose result is one number."""

    address: Url
    """The server, such as `https://prometheus.example.com`; `/api/v1/query` is added."""
    query: Annotated[str, Field(min_length=1, max_length=4096)]
    """The query, in PromQL. Its result must be a scalar, or a vector of one."""
    pass_when: Annotated[
        str,
        Field(
            min_length=2,
            max_length=40,
            pattern=COMPARISON_PATTERN,
            json_schema_extra=worded(
                "write a comparison (<, <=, >, >=, ==, !=) and a number, such as '< 0.01' or '>= 1'"
            ),
        ),
    ]
    """When that number is good: a comparison and a number, such as `< 0.01`."""
    secret_ref: SecretReference | None = None
    """A Secret with what the server asks for: `username` and `password`, or `token`, or `authorization`."""
    ca_config_map: ConfigMapKey | None = None
    """Authorities that may vouch for the server beside the public ones, in PEM."""


class WebCheck(ApiModel):
    """A GET. Any 2xx passes; redirects are not followed."""

    url: Url
    """What is asked for; without credentials."""
    body_contains: BodyText | None = None
    """What the first 64 KiB of the body must contain."""
    secret_ref: SecretReference | None = None
    """A Secret with what the server asks for: `username` and `password`, or `token`, or `authorization`."""
    ca_config_map: ConfigMapKey | None = None
    """Authorities that may vouch for the server beside the public ones, in PEM."""


class JobCheck(ApiModel):
    """A Job of the Rollout's namespace, once per batch, again only as long as it has not passed."""

    template: JobTemplate
    """The Job. When it succeeds, the analysis passes."""


class Analysis(ApiModel):
    """A question about the world that is asked between batches: exactly one of prometheus, web and job."""

    model_config = ConfigDict(json_schema_extra=one_of("prometheus", "web", "job"))

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=40,
            pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
            json_schema_extra=worded("write lower case letters, digits and '-', beginning and ending with no '-'"),
        ),
    ]
    """What it is called in status and messages."""
    prometheus: PrometheusQuery | None = None
    """A query to Prometheus."""
    web: WebCheck | None = None
    """A web page or API."""
    job: JobCheck | None = None
    """A Job."""
    interval_seconds: Annotated[int, Field(ge=5, le=24 * 3600)] = 30
    """How long after an answer it is asked again, while the next batch waits."""
    timeout_seconds: Annotated[int, Field(ge=1, le=24 * 3600)] = 600
    """How long nobody may be able to tell before the Rollout is Stalled. It goes on asking. Time in pause does not
    count."""
    failure_limit: Annotated[int, Field(ge=0, le=100)] = 0
    """How many failed answers are forgiven per batch. One more, and the run has failed, as over the tolerance."""


class AnalysisResult(ApiModel):
    """What an analysis has answered about a batch so far."""

    name: Annotated[str, Field(max_length=40)]
    """The analysis."""
    verdict: AnalysisVerdict
    """The newest answer; Unknown before the first."""
    message: Annotated[str, Field(max_length=256)] = ""
    """What was seen. Nothing of a body is ever quoted."""
    value: Annotated[str, Field(max_length=40)] = ""
    """Of a query: the number."""
    answers: int = 0
    """How many answers there were."""
    failures: int = 0
    """How many of them were Fail."""
    at: Time | None = None
    """When the newest came."""
    unknown_since: Time | None = None
    """Since when nobody can tell."""
    paused_seconds: int = 0
    """How long the run had stood in pauses then: does not count against the timeout."""
