# One image for the operator (`outrider`) and for the programs on nodes (`outrider-fetch`, `outrider-host`).
#
# A release pins the base by digest: --build-arg BASE=docker.io/library/python:3.13-slim-bookworm@sha256:…
# Any base will do that has python3 >= 3.11 with its venv module, at the same path in both stages, and ca-certificates.
ARG BASE=docker.io/library/python:3.13-slim-bookworm

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
# Two environments, so that neither pip nor setuptools end in the image.
RUN python3 -m venv /build && python3 -m venv --without-pip /opt/outrider
COPY requirements.lock requirements-dev.lock ./
# The build tool is pinned by hash like everything else.
RUN sed -n '/^setuptools==/,/[^\\]$/p' requirements-dev.lock > build.lock \
    && /build/bin/python -m pip install --require-hashes --only-binary=:all: -r build.lock \
    && /build/bin/python -m pip --python /opt/outrider/bin/python install \
        --no-compile --require-hashes --only-binary=:all: -r requirements.lock
COPY pyproject.toml README.md ./
COPY operator operator
# Left out: the asynchronous twin of the Kubernetes client, 68 MB that nothing imports.
# Bytecode is compiled once, here, and never checked against its source again: the image does not change.
RUN /build/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /build/bin/python -m pip --python /opt/outrider/bin/python install --no-compile --no-deps --no-index /wheels/*.whl \
    && rm -rf /opt/outrider/lib/python3.*/site-packages/kubernetes/aio \
    && /opt/outrider/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/outrider/lib

FROM ${BASE}
LABEL org.opencontainers.image.title="Outrider" \
      org.opencontainers.image.description="Owns the versions of node agents and moves fleets of nodes between them" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/outrider /opt/outrider
ENV PATH=/opt/outrider/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# A number, so that runAsNonRoot can be checked without looking into the image.
USER 65532:65532
WORKDIR /
ENTRYPOINT ["outrider"]
