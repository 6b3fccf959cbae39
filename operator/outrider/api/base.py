"""What the models of all kinds share: the base class, int-or-percent, conditions, CEL rules, schema markers.

Schema details that pydantic does not know (list map keys, CEL rules, defaults of nested objects) ride in
`json_schema_extra` under their Kubernetes names; `outrider.api.schema` turns the whole into structural schemas.
"""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic.alias_generators import to_camel


class ApiModel(BaseModel):
    """Base of everything in the API: camelCase outside, snake_case inside, immutable, tolerant of newer fields."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )

    def to_api(self) -> dict[str, Any]:
        """Return the JSON form as the API server takes it: camelCase, without what is unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def rule(expression: str, message: str, **extra: str) -> dict[str, Any]:
    """Return one CEL validation rule; `extra` may hold reason, fieldPath or messageExpression."""
    return {"rule": expression, "message": message, **extra}


IMMUTABLE = rule("self == oldSelf", "this field cannot be changed; create a new object instead")


def worded(message: str, *rules: dict[str, Any]) -> dict[str, Any]:
    """Return the schema marks of a field whose `pattern` is explained by `message`, with further rules."""
    marks: dict[str, Any] = {"x-outrider-pattern-message": message}
    return {**marks, "x-kubernetes-validations": list(rules)} if rules else marks


def list_map(*keys: str) -> dict[str, Any]:
    """Return the schema marks of a list whose entries are merged by `keys`."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


ATOMIC_LIST: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}
SET_LIST: dict[str, Any] = {"x-kubernetes-list-type": "set"}


def one_of(*fields: str) -> dict[str, Any]:
    """Return the schema marks of an object of which exactly one of `fields` must be set."""
    count = " + ".join(f"(has(self.{field}) ? 1 : 0)" for field in fields)
    named = f"{', '.join(fields[:-1])} and {fields[-1]}"
    return {"x-kubernetes-validations": [rule(f"{count} == 1", f"set exactly one of {named}")]}


MountPath = Annotated[
    str,
    Field(
        min_length=2,
        max_length=1024,
        pattern=r"^/[^:]+$",
        json_schema_extra=worded("write an absolute path other than '/', without ':', such as /opt/agent"),
    ),
]
"""Where a container sees a volume."""

HttpPath = Annotated[
    str,
    Field(
        min_length=1,
        max_length=1024,
        pattern=r"^/[!-~]*$",
        json_schema_extra=worded("write a path that begins with '/', without spaces, such as /healthz"),
    ),
]
"""What a GET asks for, with a query if it needs one."""

PERCENT_PATTERN = r"^(100|[1-9]?[0-9])%$"

IntOrPercent = Annotated[
    int | str,
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": PERCENT_PATTERN,
            "x-outrider-pattern-message": "write a whole number, or a percentage from '0%' to '100%'",
            "minimum": 0,
            "maximum": 1_000_000,
            # Without a bound the API server assumes the worst when it estimates what a CEL rule costs.
            "maxLength": 4,
        }
    ),
]
"""A count of nodes, or a percentage of a total that the field's description names."""

AT_LEAST_ONE = rule(
    "type(self) == string ? self != '0%' : self > 0",
    "0 nodes would never be done: write a number from 1, or a percentage from '1%'",
)
"""For an int-or-percent that rounds up."""


def resolve(value: int | str, total: int, *, up: bool) -> int:
    """Return how many of `total` nodes an int-or-percent means.

    Percentages round up or down as `up` says; numbers are taken as they are, even above `total`. Raises ValueError on
    a string that is no percentage (the schema keeps those out of stored objects).
    """
    if isinstance(value, int):
        return value
    if not value.endswith("%"):
        raise ValueError(f"{value!r} is neither a number nor a percentage")
    share = int(value[:-1]) * total
    return math.ceil(share / 100) if up else share // 100


def _utc(value: Any) -> Any:
    return value.replace("Z", "+00:00") if isinstance(value, str) else value


def _to_the_second(value: datetime) -> str:
    return value.strftime("%Y-%m-%dT%H:%M:%SZ")


Time = Annotated[
    datetime,
    BeforeValidator(_utc),
    PlainSerializer(_to_the_second, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""A point in time, RFC 3339 in UTC, to the second."""

ConditionStatus = Literal["True", "False", "Unknown"]


class Condition(ApiModel):
    """One aspect of an object's state, exactly as `metav1.Condition`."""

    type: Annotated[
        str, Field(max_length=316, pattern=r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9-]+)*/)?[A-Za-z0-9_.-]+$")
    ]
    """What the condition is about, in CamelCase."""
    status: ConditionStatus
    """Whether it holds: True, False or Unknown."""
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """The metadata.generation that the condition was computed for."""
    last_transition_time: Time
    """When the status changed last."""
    reason: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    """Why, as a CamelCase word for machines."""
    message: Annotated[str, Field(max_length=32768)]
    """Why, as a sentence for people: what happened, to what, and what to do next."""


Conditions = Annotated[list[Condition], Field(max_length=16, json_schema_extra=list_map("type"))]


class Requirement(ApiModel):
    """One requirement of a label selector."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : "
                    "!has(self.values) || size(self.values) == 0",
                    "operators In and NotIn need values; Exists and DoesNotExist must have none",
                )
            ]
        }
    )

    key: Annotated[str, Field(max_length=317)]
    """The label key."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How the label is compared with `values`."""
    values: Annotated[list[str], Field(max_length=100, json_schema_extra=ATOMIC_LIST)] = []
    """The values for In and NotIn; empty for Exists and DoesNotExist."""


class LabelSelector(ApiModel):
    """A label selector: all of matchLabels and matchExpressions must hold. An empty one selects nothing here."""

    match_labels: Annotated[dict[str, str], Field(max_length=50)] = {}
    """Labels that must have exactly these values."""
    match_expressions: Annotated[list[Requirement], Field(max_length=50, json_schema_extra=ATOMIC_LIST)] = []
    """Further requirements."""

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether `labels` satisfy the selector."""
        if any(labels.get(key) != value for key, value in self.match_labels.items()):
            return False
        return all(_holds(requirement, labels) for requirement in self.match_expressions)


def _holds(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value in requirement.values
        case "NotIn":
            return value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
